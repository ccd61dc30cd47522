"""The demo's stage 2: the published config, small enough for a laptop. `pallava demo` launches it:

NPROC_PER_NODE=2 pallava train demo/pallava_instruction_tuning --deepspeed deepspeed_zero2 --seed 1024
"""

from mmengine.config import read_base

with read_base():
    from ..pallava_instruction_tuning import *

__import__("pallava.training")

__chat = default_hooks.sample_chat
# A value that the published config computed from another one has its full key here: it would keep the old one.
llm_name_or_path = model.llm.pretrained_model_name_or_path = "./demo/llm"
pretrained_pth = model.pretrained_pth = "./demo/stage1"
plip_path = model.visual_encoder.source = "./demo/plip/encoder"
data_path = train_dataloader.dataset.data_path = "./demo/data/instruction_tuning.jsonl"
image_folder = train_dataloader.dataset.image_folder = "./demo/data/images"
sample_images = __chat.images = ["./demo/data/sample.png"]
for __part in (train_dataloader.dataset, default_hooks.dataset_info, __chat):
    __part.tokenizer.pretrained_model_name_or_path = tokenizer.pretrained_model_name_or_path = llm_name_or_path
for __part in (train_dataloader.dataset, __chat):
    __part.image_processor.source = image_processor.source = plip_path

context_length = train_dataloader.dataset.context_length = 256
prompt_template = train_dataloader.dataset.prompt_template = __chat.prompt_template = "qwen_chat"

# Smaller parts. Without dropout and recomputation a few hundred steps go further.
model.connector.update(num_hidden_layers=2, num_attention_heads=4, intermediate_size=768, dropout=0.0)
model.connector.initializer_range = 0.07  # 1 / sqrt(192), its width: tokens keep their length through each new layer
model.llm_lora.update(r=16, lora_alpha=32, lora_dropout=0.0)
recompute = model.activation_checkpointing = "none"

batch_size = train_dataloader.batch_size = train_dataloader.sampler.batch_size = 3
dataloader_num_workers = train_dataloader.num_workers = 0
accumulative_counts = optim_wrapper.accumulative_counts = 1
max_epochs = train_cfg.max_epochs = param_scheduler[1].end = 1
warmup_ratio = 0.1
param_scheduler[0].end = param_scheduler[1].begin = warmup_ratio * max_epochs
lr = optim_wrapper.optimizer.lr = 1e-3
connector_lr_mult = optim_wrapper.optimizer.lr_mults.connector = 0.1  # it has learnt to read the tiles
save_steps = default_hooks.checkpoint.interval = 1000
save_total_limit = default_hooks.checkpoint.max_keep_ckpts = 1
default_hooks.logger.interval = 5
sample_questions = __chat.questions = ["Describe the image.", "Is there necrosis?"]
__chat.max_new_tokens = 32
sample_chat_steps = __chat.every_n_iters = 1000
