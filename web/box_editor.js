/**
 * Boxes on a picture, drawn, moved, resized, labelled and removed by pointer and by keyboard.
 *
 * Knows nothing of ComfyUI: `show` says what is to be seen, `onChange` is told the boxes after each change.
 * All coordinates are pixels of the picture.
 */

import { asLabel } from "./box_text.js"

/** @typedef {import("./box_text.js").Box} Box */

const SIDES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"]
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
const KEYS = ["Enter", "Escape", "Delete", "Backspace"]
// With Ctrl an arrow key goes this many pixels at once.
const LARGE_STEP = 10
// A pointer that moved by less, in pixels of the screen, has clicked and not dragged.
const CLICK = 4
// Hues of neighbours in the list are far apart: the golden angle.
const HUE_STEP = 137.5

export class BoxEditor {
    /** @type {Box[]} */
    #boxes = []
    #width = 1
    #height = 1
    #locked = false
    #words
    #onChange
    #stage = create("div", "unigs-boxes-stage", { tabindex: 0, role: "application" })
    #picture = create("img", "unigs-boxes-picture", { alt: "", draggable: "false" })
    #notice = create("p", "unigs-boxes-notice", { role: "status" })
    /** @type {HTMLElement[]} one each box */
    #elements = []

    element = create("div", "unigs-boxes")

    /**
     * @param {ReturnType<import("./box_words.js").wordsIn>} words
     * @param {(boxes: Box[]) => void} onChange
     */
    constructor(words, onChange) {
        this.#words = words
        this.#onChange = onChange
        this.#stage.setAttribute("aria-label", words.stage)
        this.#stage.append(this.#picture)
        const frame = create("div", "unigs-boxes-frame")
        frame.append(this.#stage)
        this.element.append(frame, this.#notice)
        this.#stage.addEventListener("pointerdown", (event) => this.#onPointerDown(event))
        this.#stage.addEventListener("dblclick", (event) => this.#editLabel(this.#indexOf(event.target)))
        this.#stage.addEventListener("keydown", (event) => this.#onKeyDown(event))
    }

    /**
     * @param {object} state
     * @param {Box[]} state.boxes
     * @param {number} state.width  of the picture
     * @param {number} state.height
     * @param {string | null} state.picture  its address; without one the canvas is empty
     * @param {string} state.notice  below the picture
     * @param {boolean} state.locked  nothing can be changed
     */
    show({ boxes, width, height, picture, notice, locked }) {
        Object.assign(this.#stage.style, { aspectRatio: `${width} / ${height}` })
        this.#stage.style.setProperty("--ratio", String(width / height))
        this.#stage.setAttribute("aria-disabled", String(locked))
        this.#width = width
        this.#height = height
        this.#locked = locked
        this.#picture.hidden = picture === null
        if (picture !== null && this.#picture.getAttribute("src") !== picture) this.#picture.src = picture
        this.#notice.textContent = notice
        this.#draw(boxes)
    }

    #change(boxes) {
        this.#draw(boxes)
        this.#onChange(boxes)
    }

    #draw(boxes) {
        this.#boxes = boxes
        while (this.#elements.length > boxes.length) this.#elements.pop().remove()
        while (this.#elements.length < boxes.length) this.#addElement()
        boxes.forEach((box, index) => {
            const element = this.#elements[index]
            const [width, height] = [box.x2 - box.x1, box.y2 - box.y1]
            Object.assign(element.style, {
                left: `${(100 * box.x1) / this.#width}%`,
                top: `${(100 * box.y1) / this.#height}%`,
                width: `${(100 * width) / this.#width}%`,
                height: `${(100 * height) / this.#height}%`,
                // A small box is within reach inside a large one.
                zIndex: Math.round(1e6 / (1 + width * height)),
            })
            element.setAttribute("aria-label", this.#words.box(index + 1, box))
            element.querySelector(".unigs-boxes-label").textContent = box.label
        })
    }

    #addElement() {
        const element = create("div", "unigs-boxes-box", { tabindex: 0, role: "button" })
        element.style.setProperty("--hue", String(this.#elements.length * HUE_STEP))
        element.append(
            create("span", "unigs-boxes-label"),
            ...SIDES.map((side) => create("i", "unigs-boxes-handle", { "data-side": side })),
        )
        this.#elements.push(element)
        this.#stage.append(element)
    }

    #indexOf(target) {
        return this.#elements.indexOf(target.closest(".unigs-boxes-box"))
    }

    #replaced(index, box) {
        return Object.assign([...this.#boxes], { [index]: box })
    }

    #focus(index) {
        const place = this.#elements[index] ?? this.#stage
        place.focus({ preventScroll: true })
    }

    // Geometry

    #pointOf(event) {
        const { left, top, width, height } = this.#stage.getBoundingClientRect()
        return [((event.clientX - left) / width) * this.#width, ((event.clientY - top) / height) * this.#height]
    }

    #moved(box, dx, dy) {
        const [width, height] = [box.x2 - box.x1, box.y2 - box.y1]
        const x1 = within(Math.round(box.x1 + dx), this.#width - width)
        const y1 = within(Math.round(box.y1 + dy), this.#height - height)
        return { ...box, x1, y1, x2: x1 + width, y2: y1 + height }
    }

    /** The box with the sides of `side` ("n", "se", ...) moved; at least a pixel wide and high. */
    #resized(box, side, dx, dy) {
        const [x1, x2] = span(box.x1, box.x2, side.includes("w") ? dx : 0, side.includes("e") ? dx : 0, this.#width)
        const [y1, y2] = span(box.y1, box.y2, side.includes("n") ? dy : 0, side.includes("s") ? dy : 0, this.#height)
        return { ...box, x1, y1, x2, y2 }
    }

    // Pointer

    #onPointerDown(event) {
        if (event.button !== 0 || this.#locked || event.target.closest("input")) return
        event.stopPropagation()
        if (!event.isPrimary) return // a second finger
        // With Shift a new box begins inside another one.
        const found = event.shiftKey ? -1 : this.#indexOf(event.target)
        this.#focus(found) // a label that is being written is done now
        const before = this.#boxes
        const start = this.#pointOf(event)
        const index = found < 0 ? before.length : found
        const box = before[found] ?? { x1: start[0], y1: start[1], x2: start[0], y2: start[1], label: "" }
        const side = found < 0 ? "se" : event.target.dataset.side
        const ended = new AbortController()
        const end = (boxes) => {
            ended.abort()
            this.#draw(before)
            if (boxes !== before) this.#change(boxes)
            this.#focus(boxes.length > before.length ? index : found)
        }
        const after = (now) => {
            if (Math.hypot(now.clientX - event.clientX, now.clientY - event.clientY) < CLICK) return before
            const [dx, dy] = this.#pointOf(now).map((end, axis) => end - start[axis])
            return this.#replaced(index, side ? this.#resized(box, side, dx, dy) : this.#moved(box, dx, dy))
        }
        const on = (type, action) => this.#stage.addEventListener(type, action, { signal: ended.signal, capture: true })
        const onPointer = (type, action) => on(type, (now) => now.pointerId === event.pointerId && action(now))
        onPointer("pointermove", (now) => this.#draw(after(now)))
        onPointer("pointerup", (now) => end(after(now)))
        onPointer("pointercancel", () => end(before))
        on("keydown", (now) => {
            now.stopPropagation()
            if (now.key === "Escape") end(before)
        })
        event.target.setPointerCapture(event.pointerId)
    }

    // Keyboard

    #onKeyDown(event) {
        const { key, target, altKey, ctrlKey, metaKey } = event
        const isArrow = key in ARROWS
        if (target.matches("input") || altKey || metaKey || !(isArrow || (KEYS.includes(key) && !ctrlKey))) return
        event.preventDefault()
        event.stopPropagation() // the host would remove the node
        const index = this.#indexOf(target)
        if (this.#locked) return
        else if (index >= 0) this.#onBoxKey(event, index)
        else if (key === "Enter") this.#addInTheMiddle()
        else if (isArrow) this.#focus(ARROWS[key].includes(1) ? 0 : this.#boxes.length - 1)
    }

    #onBoxKey({ key, shiftKey, ctrlKey }, index) {
        const box = this.#boxes[index]
        if (key in ARROWS) {
            const [dx, dy] = ARROWS[key].map((step) => step * (ctrlKey ? LARGE_STEP : 1))
            this.#change(this.#replaced(index, shiftKey ? this.#resized(box, "se", dx, dy) : this.#moved(box, dx, dy)))
        } else if (key === "Enter") {
            this.#editLabel(index)
        } else if (key === "Escape") {
            this.#focus(-1)
        } else {
            this.#change(this.#boxes.filter((other) => other !== box))
            this.#focus(Math.min(index, this.#boxes.length - 1))
        }
    }

    #addInTheMiddle() {
        const [width, height] = [this.#width, this.#height].map((side) => Math.ceil(side / 4))
        const box = { x1: 0, y1: 0, x2: width, y2: height, label: "" }
        this.#change([...this.#boxes, this.#moved(box, (this.#width - width) / 2, (this.#height - height) / 2)])
        this.#focus(this.#boxes.length - 1)
    }

    #editLabel(index) {
        if (index < 0 || this.#locked) return
        const element = this.#elements[index]
        const input = create("input", "unigs-boxes-input", { type: "text", "aria-label": this.#words.label })
        // Towards the middle, as the stage is cut off at its border.
        const { x1, x2, label } = this.#boxes[index]
        if (x1 + x2 > this.#width) Object.assign(input.style, { left: "auto", right: 0 })
        input.value = label
        let open = true // taking a field away blurs it
        const close = (keep) => {
            if (!open) return
            open = false
            const refocus = document.activeElement === input
            input.remove()
            const label = asLabel(input.value)
            if (keep && label !== this.#boxes[index].label) {
                this.#change(this.#replaced(index, { ...this.#boxes[index], label }))
            }
            if (refocus) this.#focus(index)
        }
        input.addEventListener("blur", () => close(true))
        input.addEventListener("keydown", (event) => {
            event.stopPropagation()
            // Enter that chooses among the words of an input method ends nothing.
            if (!event.isComposing && (event.key === "Enter" || event.key === "Escape")) close(event.key === "Enter")
        })
        element.append(input)
        input.focus({ preventScroll: true })
        input.select()
    }
}

function within(value, most) {
    return Math.max(0, Math.min(value, most))
}

/** Two moved ends in whole pixels, in order, inside [0, most], at least one apart. */
function span(start, end, moveStart, moveEnd, most) {
    const ends = [Math.round(start + moveStart), Math.round(end + moveEnd)].map((value) => within(value, most))
    const low = Math.min(...ends, most - 1)
    return [low, Math.max(...ends, low + 1)]
}

function create(tag, name, attributes = {}) {
    const element = document.createElement(tag)
    element.className = name
    for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value)
    return element
}
