/**
 * Boxes as text, in the grammar of unigs/boxes.py: `x1,y1,x2,y2 label`, separated by semicolons or new lines.
 *
 * @typedef {{x1: number, y1: number, x2: number, y2: number, label: string}} Box  pixels, half-open; label may be ""
 */

const BOX = /^([^\s,]+)[\s,]+([^\s,]+)[\s,]+([^\s,]+)[\s,]+([^\s,]+)(?:[\s,]+(.*))?$/s
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i
const LABEL = /^(\p{L}.*)?$/su

/**
 * @param {string} text
 * @returns {{boxes: Box[], unreadable: string | null}}  the boxes that can be read, and the first part that cannot
 */
export function parseBoxes(text) {
    const boxes = []
    let unreadable = null
    for (const part of text.split(/[;\n]/)) {
        const words = part.replace(/^[\s,]+|[\s,]+$/g, "")
        if (!words) continue
        const [, ...found] = words.match(BOX) ?? []
        const [x1, y1, x2, y2] = found.slice(0, 4).map(Number)
        const label = (found[4] ?? "").split(/\s+/).join(" ")
        if (found.length && found.slice(0, 4).every((number) => NUMBER.test(number)) && LABEL.test(label)) {
            boxes.push({ x1, y1, x2, y2, label })
        } else {
            unreadable ??= part.trim()
        }
    }
    return { boxes, unreadable }
}

/** @param {Box[]} boxes */
export function formatBoxes(boxes) {
    return boxes.map(({ x1, y1, x2, y2, label }) => `${x1},${y1},${x2},${y2} ${label}`.trim()).join("\n")
}

/** What somebody typed as a label, without what would end it or be read as a number. */
export function asLabel(text) {
    return text
        .replace(/[\s;]+/g, " ")
        .replace(/^[^\p{L}]+/u, "")
        .replace(/[\s,]+$/, "")
}
