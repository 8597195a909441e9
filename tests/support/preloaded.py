"""Imports what a training run imports, and computes nothing: a fork of a process that has it starts in a moment.

The names are not used here (F401): a fork finds the modules loaded. Starts no thread, which a fork would lack.
"""

import distutils.ccompiler  # noqa: F401 - by DeepSpeed
import gc

import deepspeed
import deepspeed.module_inject.auto_ep_layer
import deepspeed.ops.op_builder.all_ops  # noqa: F401
import omegaconf  # noqa: F401
import timm  # noqa: F401
import torch.distributed
import torch.utils.tensorboard  # noqa: F401
import torchvision.io  # noqa: F401
import transformers.models.auto.tokenization_auto
import transformers.models.bert.modeling_bert
import transformers.models.opt.modeling_opt
import transformers.models.t5.modeling_t5  # noqa: F401
from PIL import JpegImagePlugin, PngImagePlugin  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import pipeline.cost.flops
import pipeline.models.trial
import pipeline.train
import pipeline.training.engine
import pipeline.training.loop  # noqa: F401

get_checkpoint_conversion_mapping("opt")  # compiles a thousand patterns, which the process keeps
gc.freeze()  # what was imported is never garbage, and looking at it again and again would copy its pages
