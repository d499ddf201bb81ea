"""The trainer under FSDP on processes without a GPU, which accelerate offers for GPUs only: its choice of the kind of
processes is overruled, everything after that is as it would be. Run by torch.distributed.run."""

import os
import sys

os.environ |= {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BasicTransformerBlock,ResnetBlock2D",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_OFFLOAD_PARAMS": "false",
}

from accelerate import DistributedType  # noqa: E402
from accelerate.state import PartialState  # noqa: E402

from training import train_joint  # noqa: E402

if __name__ == "__main__":
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    train_joint.main(sys.argv[1:])
