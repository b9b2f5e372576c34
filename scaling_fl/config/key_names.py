"""The key that a mistyped or foreign name stands for: misspellings, and what other tools call the same thing."""

import difflib
from collections.abc import Collection

# Our key, and its names in Hugging Face's Trainer, PyTorch scripts, Flower, FedML, LEAF, pfl-research and TFF.
_ELSEWHERE = {
    "learning_rate": "lr eta client_lr client_learning_rate local_lr base_lr",
    "num_local_epochs": "epochs epoch num_epochs num_train_epochs local_epochs client_epochs local_ep n_epochs",
    "num_rounds": "rounds round num_server_rounds comm_round comm_rounds communication_rounds global_rounds n_rounds",
    "batch_size": "batch bs train_batch_size local_batch_size local_bs per_device_train_batch_size client_batch_size",
    "val_batch_size": "eval_batch_size test_batch_size per_device_eval_batch_size validation_batch_size",
    "gradient_accumulation_steps": "grad_accum gradient_accumulation accumulation_steps accumulate_grad_batches",
    "optimiser": "optim opt client_optimizer local_optimizer",
    "server_optimiser": "strategy aggregator server_opt server_optim",
    "server_learning_rate": "server_lr global_lr eta_server",
    "lr_schedule": "lr_scheduler scheduler lr_scheduler_type schedule",
    "warmup": "warmup_steps warmup_ratio warmup_rounds num_warmup_steps",
    "weight_decay": "wd l2 weight_decay_rate",
    "max_grad_norm": "clip grad_clip clip_norm clip_grad_norm gradient_clip_val clip_grad gradient_clipping",
    "model": "model_name model_name_or_path model_id model_path pretrained backbone",
    "max_seq_len": "max_length max_len max_seq_length seq_len seq_length block_size",
    "num_sites": "clients num_clients n_clients client_num_in_total sites users num_users parties num_parties silos",
    "sites_per_round": "clients_per_round client_num_per_round num_clients_per_round cohort_size min_fit_clients",
    "participation": "frac fraction fraction_fit fraction_train client_fraction participation_rate sample_fraction",
    "site_ids": "gpus gpu gpu_ids device devices device_ids cuda cuda_visible_devices no_cuda use_cpu",
    "partition": "partitioner partition_method split_method distribution",
    "iid_split": "iid non_iid noniid is_iid",
    "alpha": "dirichlet_alpha dir_alpha beta concentration partition_alpha",
    "labels_per_site": "labels_per_client classes_per_client num_classes_per_client shards_per_client",
    "task_name": "task dataset_type",
    "dataset": "dataset_name dataset_name_or_path data_set",
    "train_path": "train_file train_data train_csv train_dataset data_path data_dir data",
    "test_path": "test_file test_data test_csv validation_file eval_file val_path validation_path valid_path",
    "text_column": "text text_column_name text_col input_column sentence_column text_field",
    "label_column": "label label_column_name label_col target target_column label_field",
    "validation_fraction": "val_split validation_split val_fraction validation_size val_size",
    "max_train_examples": "max_train_samples num_train_examples train_size",
    "max_test_examples": "max_eval_samples max_test_samples test_size",
    "checkpoints_dir": "output_dir out_dir save_dir ckpt_dir output save_path logging_dir resume resume_from_checkpoint",
    "checkpoint_every": "save_every save_steps save_interval checkpoint_interval save_strategy",
    "keep_checkpoints": "save_total_limit max_checkpoints",
    "keep_best": "metric_for_best_model load_best_model_at_end save_best",
    "eval_every": "eval_steps eval_interval evaluate_every frequency_of_the_test",
    "job_name": "run_name name experiment_name exp_name experiment run_id wandb_name",
    "author": "user username owner",
    "seed": "random_seed manual_seed random_state torch_seed",
    "precision": "fp16 bf16 dtype torch_dtype amp mixed_precision half",
    "compile": "torch_compile use_compile",
    "threads_per_site": "threads num_threads n_threads num_workers cpus",
}
_KEY_OF = {name: key for key, names in _ELSEWHERE.items() for name in names.split()}


def meant(name: str, keys: Collection[str]) -> str | None:
    """The key of `keys` that `name` most probably stands for, or `None`. Case, and - for _, make no difference."""
    plain = name.strip().lstrip("-").replace("-", "_").lower()
    if plain in keys:
        return plain
    if plain in _KEY_OF:
        return _KEY_OF[plain]
    close = difflib.get_close_matches(plain, [*keys, *_KEY_OF], n=1, cutoff=0.7)
    return _KEY_OF.get(close[0], close[0]) if close else None
