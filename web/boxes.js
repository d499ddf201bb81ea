/**
 * The boxes of Coarse Mask From Box, drawn on its picture.
 *
 * The node's text stays the one truth: the widget reads it, and writes it as a person would. It has no value of its own and is
 * saved nowhere. A frontend without DOM widgets shows the text alone.
 */

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { BoxEditor } from "./box_editor.js"
import { formatBoxes, parseBoxes } from "./box_text.js"
import { wordsIn } from "./box_words.js"

const NODE = "UniGSCoarseMaskFromBox"
const LOADERS = ["LoadImage", "LoadImageOutput"]
const MIN_HEIGHT = 220 // that of boxes.css, and the host's margins
const NEW_SIZE = [360, 560]

app.registerExtension({
    name: "UniGS.Boxes",
    setup() {
        const style = document.createElement("link")
        style.rel = "stylesheet"
        style.href = new URL("./boxes.css", import.meta.url).href
        document.head.append(style)
        api.addEventListener("execution_cached", ({ detail }) => recall(detail.nodes))
    },
    nodeCreated(node) {
        if (node.comfyClass === NODE && node.addDOMWidget) addBoxEditor(node)
    },
})

function addBoxEditor(node) {
    const widgets = Object.fromEntries(node.widgets.map((widget) => [widget.name, widget]))
    const words = wordsIn(app.extensionManager?.setting?.get("Comfy.Locale"))
    const editor = new BoxEditor(words, (boxes) => {
        widgets.boxes.value = formatBoxes(boxes)
        widgets.boxes.callback?.(widgets.boxes.value, app.canvas, node)
        node.setDirtyCanvas(true, true)
    })
    for (const type of ["keyup", "pointerup"]) editor.element.addEventListener(type, rememberForUndo)
    passOn(editor.element)

    let shown = "" // all that the editor shows, as a text to compare
    let picture = null // {address, size}, loaded
    let wanted = null // address of what is loaded, or on its way
    const load = async ({ address, size }) => {
        wanted = address
        const found = address && (await sizeOf(address))
        if (wanted !== address) return
        picture = found && { address, size: size ?? found }
        refresh()
    }
    const refresh = () => {
        const source = sourceOf(node)
        if (source.address !== wanted) load(source)
        const measured = measuredBy(node)
        const [width, height] = picture?.size ?? measured ?? [widgets.width.value, widgets.height.value]
        const { boxes, unreadable } = parseBoxes(widgets.boxes.value)
        const linked = linkOf(node, "boxes") !== null
        let obstacle = null // boxes moved on a canvas of another size than the picture's would be lost
        if (linked) obstacle = words.linked
        else if (unreadable !== null) obstacle = words.unreadable(unreadable)
        else if (source.connected && !picture) obstacle = words.unseen
        else if (!source.connected && linksOfSize(node) && !measured) obstacle = words.unmeasured
        const ran = source.size || (!picture && measured) ? words.lastRun(width, height) : ""
        const [notice, locked] = [obstacle ?? ran + words.hint, obstacle !== null]
        const state = { boxes, width, height, picture: picture?.address ?? null, notice, locked }
        if (JSON.stringify(state) === shown) return
        shown = JSON.stringify(state)
        editor.show(state)
    }
    const { callback } = widgets.boxes
    widgets.boxes.callback = function (...args) {
        callback?.apply(this, args)
        refresh()
    }
    const widget = node.addDOMWidget("boxes_on_picture", "UNIGS_BOXES", editor.element, {
        serialize: false,
        getMinHeight: () => MIN_HEIGHT,
        onDraw: refresh,
    })
    widget.serialize = false
    node.setSize([Math.max(node.size[0], NEW_SIZE[0]), Math.max(node.size[1], NEW_SIZE[1])])

    const { onConfigure, onExecuted, onRemoved } = node
    node.onConfigure = function (saved) {
        onConfigure?.call(this, saved)
        refresh()
    }
    node.onExecuted = function (output) {
        onExecuted?.call(this, output)
        const [entry] = output?.picture ?? []
        if (entry) executed.set(placeOf(node), { link: linkOf(node, "image"), entry, rand: Date.now() })
        if (output?.size) sizes.set(placeOf(node), { links: linksOfSize(node), size: output.size[0] })
        node.setDirtyCanvas(true, true)
    }
    // Nodes that are not drawn on the canvas (Nodes 2.0) do not call `onDraw`.
    for (const type of ["pointerenter", "focusin"]) editor.element.addEventListener(type, refresh)
    const timer = setInterval(() => globalThis.LiteGraph?.vueNodesMode && refresh(), 500)
    node.onRemoved = function () {
        clearInterval(timer)
        onRemoved?.call(this)
    }
    refresh()
}

/** After clicks the host looks itself for changes that it can undo, after keys only in fields of its own. */
function rememberForUndo() {
    const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
    if (tracker?.captureCanvasState) tracker.captureCanvasState()
    else tracker?.checkState?.() // its name until frontend 1.40 or so
}

/** Pictures that came out of a run, by node: undoing a change makes all nodes anew. */
const executed = new Map()

/** The same of sizes that come from other nodes. */
const sizes = new Map()

/**
 * Of nodes that are cached the host tells nothing, and a page that was loaded anew does not know what they showed: the
 * host's history does.
 */
async function recall(cached) {
    const unknown = []
    for (const node of boxNodes()) {
        const known = linkOf(node, "image") ? executed : linksOfSize(node) ? sizes : null
        const root = node.graph?.isRootGraph ?? node.graph === app.graph
        const ids = cached.filter((id) => (root ? id === String(node.id) : id.endsWith(`:${node.id}`)))
        if (known && !known.has(placeOf(node)) && ids.length === 1) unknown.push([node, ids[0]])
    }
    if (!unknown.length) return
    const answer = await api.fetchApi("/history?max_items=64")
    const runs = Object.values(await answer.json()).reverse() // the newest first
    for (const [node, id] of unknown) {
        const run = runs.find((run) => run.prompt[2][id]?.class_type === NODE && run.outputs[id])
        if (run) node.onExecuted(run.outputs[id])
    }
}

/** Ours in the workflow that is open, those in sub-graphs too. */
function boxNodes() {
    const root = app.rootGraph ?? app.graph
    const graphs = [root, ...(root?.subgraphs?.values() ?? [])]
    return graphs.flatMap((graph) => graph?.nodes ?? graph?._nodes ?? []).filter((node) => node.comfyClass === NODE)
}

function placeOf(node) {
    return `${node.graph?.id}/${node.id}`
}

/** What the image input shows: is something connected, the picture's address or null, its [width, height] if known. */
function sourceOf(node) {
    const link = linkOf(node, "image")
    const origin = link && node.getInputNode?.(node.inputs.findIndex((input) => input.name === "image"))
    const loads = LOADERS.includes(origin?.comfyClass) // others may scale what is in the file
    const file = loads ? origin.widgets?.find((widget) => widget.name === "image")?.value : null
    if (typeof file === "string") return { connected: true, address: origin.imgs?.[0]?.src ?? viewOf(file) }
    const ran = executed.get(placeOf(node))
    if (!link || ran?.link !== link) return { connected: Boolean(link), address: null }
    const { width, height, ...saved } = ran.entry
    // Names begin anew when the host does: what tells one run from another is `rand`, as in the host's own addresses.
    const address = api.apiURL(`/view?${new URLSearchParams({ ...saved, rand: ran.rand })}`)
    return { connected: true, address, size: [width, height] }
}

/** [width, height] of the last run, if they come from other nodes and still from the same ones; else null. */
function measuredBy(node) {
    const links = linksOfSize(node)
    const ran = sizes.get(placeOf(node))
    return links && ran?.links === links ? ran.size : null
}

/** Where width and height come from, as a text to compare; null if they are the node's own. */
function linksOfSize(node) {
    const links = ["width", "height"].map((name) => linkOf(node, name))
    return links.some((link) => link !== null) ? links.join() : null
}

/** Where an input comes from, as a text to compare, or null. */
function linkOf(node, name) {
    const id = node.inputs?.find((input) => input.name === name)?.link ?? null
    const link = id === null ? null : node.graph?.links?.get?.(id) ?? node.graph?.links?.[id]
    return link ? `${link.origin_id}:${link.origin_slot}` : null
}

/** The address of a file as Load Image names it: "folder/name.png [input]". */
function viewOf(annotated) {
    const [, path, type = "input"] = annotated.match(/^(.*?)(?: \[(input|output|temp)\])?$/)
    const [, subfolder, filename] = path.match(/^(?:(.*)\/)?([^/]*)$/)
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type })}`)
}

/** [width, height] of a picture, or null if it cannot be loaded. */
async function sizeOf(address) {
    const picture = new Image()
    picture.src = address
    try {
        await picture.decode()
    } catch {
        return null
    }
    return [picture.naturalWidth, picture.naturalHeight]
}

/** Wheel and middle button move the canvas, as over the host's own text fields. */
function passOn(element) {
    element.addEventListener("wheel", (event) => {
        event.preventDefault()
        app.canvas?.processMouseWheel(event)
    })
    element.addEventListener("pointerdown", (event) => event.button === 1 && app.canvas?.processMouseDown(event))
    element.addEventListener("pointermove", (event) => event.buttons & 4 && app.canvas?.processMouseMove(event))
    element.addEventListener("pointerup", (event) => event.button === 1 && app.canvas?.processMouseUp(event))
}
