/** What the widget says, in the languages of the nodes (locales/). A function takes what it has to name. */

const ENGLISH = {
    stage: "Boxes on the picture. Enter adds a box, arrow keys choose one.",
    box: (number, { x1, y1, x2, y2, label }) => `Box ${number}${label && `, ${label}`}: ${x1}, ${y1} to ${x2}, ${y2}`,
    label: "Label of the box",
    hint: "Drag: draw. Enter: label. Arrows: move. Shift+arrows: resize. Delete: remove.",
    lastRun: (width, height) => `As of the last run: ${width} × ${height}. `,
    unreadable: (part) => `Cannot read “${part}”: correct the text above to draw.`,
    linked: "The boxes come from a connected node.",
    unseen: "Run the workflow once to draw on the picture that is connected here; without a box yet, as kind full.",
    unmeasured: "Run the workflow once to draw in the size that is connected here; without a box yet, as kind full.",
}

const CHINESE = {
    stage: "图像上的框。回车键添加框，方向键选择框。",
    box: (number, { x1, y1, x2, y2, label }) => `框 ${number}${label && `，${label}`}：${x1}, ${y1} 至 ${x2}, ${y2}`,
    label: "框的标签",
    hint: "拖动：绘制。回车：标签。方向键：移动。Shift+方向键：调整大小。Delete：删除。",
    lastRun: (width, height) => `上次运行时：${width} × ${height}。`,
    unreadable: (part) => `无法读取“${part}”：请先更正上面的文本，再绘制。`,
    linked: "框来自所连接的节点。",
    unseen: "运行一次工作流，即可在所连接的图像上绘制；还没有框时，类型请选 full。",
    unmeasured: "运行一次工作流，即可按所连接的尺寸绘制；还没有框时，类型请选 full。",
}

/** @param {string} locale  of the frontend, like "en" or "zh" */
export function wordsIn(locale) {
    return locale === "zh" ? CHINESE : ENGLISH
}
