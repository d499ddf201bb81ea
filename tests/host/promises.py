"""What people may rely on, because packs are so often complained about for it; each is tested in a real ComfyUI.

A test that stands for one of these carries `@pytest.mark.promise(name)`; `pytest tests/host -m promise` runs them all.
"""

PROMISES = {
    "mask size": "A mask of another size than the picture is scaled to it.",
    "mask count": "One mask serves all pictures of a batch; another number of masks than pictures is one clear error.",
    "batch": "Batches work in every task and in every node, and the first of a batch is what it is alone.",
    "any size": "Pictures of any size are padded inside and come back as they were.",
    "RGBA": "Pictures with an alpha channel are taken.",
    "nothing found": "Where nothing is found, one empty mask goes through all nodes; a sampler says it is empty.",
    "stable entities": "The same colormap gives the same entities in the same order, each run; none are merged.",
    "device": "What meets in a computation is on one device, wherever the inputs came from.",
    "precision": "fp32, fp16 and bf16 weights give the same picture, up to their rounding.",
    "hardware": "No device and no precision is built in: it runs on a CPU as it does elsewhere.",
    "memory": "All weights are in the host's hands: it unloads them, /free gives everything back, nothing piles up.",
    "cancel": "Cancelling takes effect within one step, one colormap or one layer of the VAE; the server stays well.",
    "progress": "Every step is shown, with a preview of the picture and of its colormap.",
    "model paths": "Folders of extra_model_paths.yaml are searched.",
    "offline": "Nothing is downloaded: no connection is even tried.",
    "one import": "A library that is missing or broken takes away what needs it, and no other node.",
    "names": "Modules of other packs called utils, src, nodes or unigs, and ours, do not meet.",
    "node ids": "Every node id begins with UniGS, and nothing of the host's or of others' is replaced.",
    "no patches": "Nothing of ours changes a graph without our nodes, before or after.",
    "no pins": "Installing it replaces no package of the host.",
    "saved workflows": "Inputs and outputs keep their names and places; saved workflows open as they were saved.",
}
