"""UniGS for ComfyUI. Nothing is imported until ComfyUI asks, so that tests can import this package without it."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes.extension import UniGSExtension

    return UniGSExtension()
