"""PA-LLaVA, stage 2: instruction tuning. Connector and LoRA go on from stage 1 with questions and answers.

Get an own copy with `pallava config copy pallava_instruction_tuning`, set PART 1, and launch (`pallava train` takes the
same arguments as `xtuner train`, finds the config by its bare name, and reports failures in its exit code):

    one GPU     xtuner train pallava_instruction_tuning.py --deepspeed pallava_zero1 --seed 1024
    8 GPUs      NPROC_PER_NODE=8 xtuner train pallava_instruction_tuning.py --deepspeed pallava_zero1 --seed 1024
    2 nodes     NPROC_PER_NODE=8 NNODES=2 PORT=12345 ADDR=<first node> NODE_RANK=0 \
                    xtuner train pallava_instruction_tuning.py --deepspeed pallava_zero1 --seed 1024
                (the same on the second node with NODE_RANK=1)
    Slurm       srun -p <partition> --ntasks=8 --ntasks-per-node=8 --gres=gpu:8 --kill-on-bad-exit=1 \
                    xtuner train pallava_instruction_tuning.py --launcher slurm --deepspeed pallava_zero1 --seed 1024
    resume      ... --resume auto  (the newest whole checkpoint of the work directory, or the start; or give one)
"""

from mmengine.hooks import DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import CosineAnnealingLR, LinearLR
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer
from peft import LoraConfig
from xtuner.engine.hooks import DatasetInfoHook

from pallava.model import load_encoder, load_image_processor
from pallava.model.loading import load_llm, load_tokenizer
from pallava.training.dataset import PALLaVADataset, collate
from pallava.training.features import FeatureCache
from pallava.training.hooks.bad_images import BadImagesHook
from pallava.training.hooks.chat import SampleChatHook
from pallava.training.hooks.checkpoint import WholeCheckpointHook
from pallava.training.hooks.config import TrainingConfigHook
from pallava.training.hooks.metrics import TrainingMetricsHook
from pallava.training.hooks.nonfinite import NonFiniteHook
from pallava.training.hooks.random_state import RandomStateHook
from pallava.training.hooks.reading import TileReadingHook
from pallava.training.loop import TrainLoop
from pallava.training.model import PALLaVAModel, build_connector
from pallava.training.optimizer import grouped_adamw, precise_optim_wrapper
from pallava.training.sampler import LengthSampler

# Imports of a config do not run while it is parsed; this statement does, and loads the plugin early enough. The dumped
# config, which loses it, has `custom_imports` instead.
__import__("pallava.training")
custom_imports = dict(imports=["pallava.training"], allow_failed_imports=False)

#######################################################################
#                          PART 1  Settings                           #
#######################################################################
# Paths, relative to the directory you launch from. Yours to set.
llm_name_or_path = "meta-llama/Meta-Llama-3-8B-Instruct"
llm_in_4bit = False  # True is QLoRA, for small cards; needs pip install --no-deps bitsandbytes==0.50.2
plip_path = "./pretrained/plip"  # or another encoder: "timm:vit_small_patch16_224", a folder of DINOv2 or SigLIP
pretrained_pth = "./work_dirs/pallava_domain_alignment"  # stage 1: its work directory (the newest) or one checkpoint
data_path = "./data/instruction_tuning.jsonl"
image_folder = "./data/images"

on_bad_image = "raise"  # at an image that cannot be opened; "skip" takes the next row, and lists the bad ones
max_bad_images = 0.001  # largest share of the rows that "skip" may replace; more end the training

feature_cache = None  # a folder for the frozen encoder's tokens: from the second epoch on, images are read from there
feature_cache_gb = 100  # largest size of it; a PLIP image of 8 tiles takes 2.7 MB in bf16, 5.4 MB in float32
feature_cache_dtype = "auto"  # as computed; "bfloat16" rounds those of a float32 training to half the size

# Text
prompt_template = "llama3_chat"
context_length = 2048  # text and visual tokens together
num_visual_tokens = None  # most of an image; None: computed from encoder and connector, 196 for PLIP

# Scheduler and optimizer
batch_size = 6  # per process
accumulative_counts = 4
dataloader_num_workers = None  # per process; None: the cores, divided by the processes of the machine, at most 16
max_epochs = 12
lr = 2e-4
min_lr = 1e-6
connector_lr_mult = 0.5
betas = (0.9, 0.999)
weight_decay = 0
max_norm = 1  # gradient clipping
max_skipped_steps = 10  # in a row, for a loss or gradient that is not finite; more end the training
warmup_ratio = 0.03
# Activations that are computed twice to save memory: "none", "connector", "llm", "all", a number n (every n-th layer of
# the language model, and the connector), or "auto", the least that fits the card.
recompute = "auto"
precision = "auto"  # bf16 where the device has it, else fp16 with a dynamic loss scale, else (CPU) float32

# Save
save_steps = 2000  # iterations; written where the optimizer step of this iteration ends
save_total_limit = 20  # -1 keeps all

# Ask the model about images now and then: one image for each question, or one for all. No image: no chat.
sample_chat_steps = 1000
sample_images = ["./data/sample.jpg"]
sample_questions = ["What tissue does this image show?", "Is there a tumor in this image?"]

#######################################################################
#            PART 2  Model & Tokenizer & Image Processor              #
#######################################################################
tokenizer = dict(type=load_tokenizer, pretrained_model_name_or_path=llm_name_or_path, padding_side="right")

image_processor = dict(type=load_image_processor, source=plip_path)

connector = dict(
    type=build_connector,
    num_hidden_layers=6,
    num_attention_heads=None,  # follows the encoder's width: 12 for PLIP
    intermediate_size=3072,
    dropout=0.1,
    add_cross_attention=True,
)

model = dict(
    type=PALLaVAModel,
    llm=dict(
        type=load_llm,
        pretrained_model_name_or_path=llm_name_or_path,
        torch_dtype=precision,
        load_in_4bit=llm_in_4bit,
    ),
    visual_encoder=dict(type=load_encoder, source=plip_path),
    connector=connector,
    freeze_llm=True,
    freeze_visual_encoder=True,
    llm_lora=dict(
        type=LoraConfig,
        r=128,
        lora_alpha=256,
        lora_dropout=0.05,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules="all-linear",
    ),
    pretrained_pth=pretrained_pth,
    activation_checkpointing=recompute,
)

#######################################################################
#                      PART 3  Dataset & Dataloader                   #
#######################################################################
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=dataloader_num_workers,
    pin_memory=True,
    dataset=dict(
        type=PALLaVADataset,
        data_path=data_path,
        image_folder=image_folder,
        tokenizer=tokenizer,
        image_processor=image_processor,
        prompt_template=prompt_template,
        context_length=context_length,
        num_visual_tokens=num_visual_tokens,
        connector=connector,
        on_bad_image=on_bad_image,
        max_bad_images=max_bad_images,
        features=dict(type=FeatureCache, folder=feature_cache, max_gb=feature_cache_gb, dtype=feature_cache_dtype),
    ),
    # Random, but rows that are computed together have like lengths: less padding, and no process waits for another.
    sampler=dict(type=LengthSampler, batch_size=batch_size),
    collate_fn=dict(type=collate),
)

#######################################################################
#                    PART 4  Scheduler & Optimizer                    #
#######################################################################
optim_wrapper = dict(
    type=precise_optim_wrapper,
    precision=precision,
    optimizer=dict(
        type=grouped_adamw,
        lr=lr,
        lr_mults=dict(connector=connector_lr_mult),
        betas=betas,
        weight_decay=weight_decay,
    ),
    clip_grad=dict(max_norm=max_norm, error_if_nonfinite=False),
    accumulative_counts=accumulative_counts,
)

param_scheduler = [
    dict(
        type=LinearLR,
        start_factor=1e-5,
        by_epoch=True,
        begin=0,
        end=warmup_ratio * max_epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type=CosineAnnealingLR,
        eta_min=min_lr,
        by_epoch=True,
        begin=warmup_ratio * max_epochs,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(type=TrainLoop, max_epochs=max_epochs)

#######################################################################
#                           PART 5  Runtime                           #
#######################################################################
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=WholeCheckpointHook, by_epoch=False, interval=save_steps, max_keep_ckpts=save_total_limit),
    sampler_seed=dict(type=DistSamplerSeedHook),
    dataset_info=dict(type=DatasetInfoHook, tokenizer=tokenizer),
    metrics=dict(type=TrainingMetricsHook),  # vis_data/metrics.jsonl has a line for each optimizer step
    tile_reading=dict(type=TileReadingHook),  # logs tile_entropy: does the connector still read the tiles?
    sample_chat=dict(
        type=SampleChatHook,
        tokenizer=tokenizer,
        image_processor=image_processor,
        images=sample_images,
        questions=sample_questions,
        prompt_template=prompt_template,
        every_n_iters=sample_chat_steps,
        max_new_tokens=64,  # enough to see whether it answers; all processes wait for the longest
    ),
    bad_images=dict(type=BadImagesHook),
    random_states=dict(type=RandomStateHook),
    nonfinite=dict(type=NonFiniteHook, max_in_a_row=max_skipped_steps),
    training_config=dict(type=TrainingConfigHook),  # for `pallava convert`
)
custom_hooks = []  # your own: dict(type="my_hooks.MyHook")

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    # gloo on a machine without a GPU. A process waits two hours (in seconds) for one that tokenizes or saves.
    dist_cfg=dict(backend="nccl", timeout=7200),
)

# To watch elsewhere, add dict(type="WandbVisBackend", init_kwargs=dict(project="pallava")) (pip install wandb) or
# dict(type="MLflowVisBackend", exp_name="pallava", tracking_uri="http://<server>:5000") (pip install mlflow-skinny).
visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)])
log_level = "INFO"
log_processor = dict(by_epoch=False, mean_pattern=r".*(loss|time|grad_norm|per_second|share).*")  # over 10 values
load_from = None
resume = False  # True would take up whatever an old run left in the work directory; use --resume
randomness = dict(seed=None, deterministic=False)  # --seed sets it
