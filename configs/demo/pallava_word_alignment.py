"""The demo's first step, ahead of stage 1: a new connector learns the words of captions. `pallava demo` launches it:

pallava train demo/pallava_word_alignment --deepspeed deepspeed_zero2 --seed 1024

PA-LLaVA has no such step. Without it the connector of so short a training learns what the overview shows, and then
cannot learn to read the tiles any more.
"""

from mmengine.config import read_base
from mmengine.dataset import DefaultSampler

with read_base():
    from .pallava_domain_alignment import *

__import__("pallava.training")

model.pretrained_pth = None
model.objective = "words"
model.llm_lora = None

# The language model is not run: many steps take little time, however long the texts are. Words are compared within a
# batch of one process: in random order, since captions of one length have the same words.
batch_size = train_dataloader.batch_size = 6
train_dataloader.sampler = dict(type=DefaultSampler, shuffle=True)
max_epochs = train_cfg.max_epochs = param_scheduler[1].end = 6
param_scheduler[0].end = param_scheduler[1].begin = warmup_ratio * max_epochs
lr = optim_wrapper.optimizer.lr = 5e-4
connector_lr_mult = optim_wrapper.optimizer.lr_mults.connector = 1.0
default_hooks.logger.interval = 25
sample_images = default_hooks.sample_chat.images = []
