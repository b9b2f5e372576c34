"""The preparation child: it checks all input, and builds once what all workers need.

It reads the data, loads the model, finds the checkpoint to resume from, and writes what the workers open to a work
folder: token stores, shards, the model's architecture and tokenizer, and the server state.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaling_fl import state_file
from scaling_fl.checkpoint import resume
from scaling_fl.checkpoint.final_model import folders, is_exported
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config import method_constraints
from scaling_fl.config.schema import Config
from scaling_fl.data import duplicates, site_tests, token_store
from scaling_fl.data.examples import Split
from scaling_fl.data.shards import make_shards
from scaling_fl.data.task_loader import load_task, reads_over_network
from scaling_fl.errors import UserError
from scaling_fl.federated import algorithms, best_round, cohort, server
from scaling_fl.federated.metrics import label_entropy
from scaling_fl.federated.privacy import guarantee
from scaling_fl.federated.resident import AUTOCAST, precision
from scaling_fl.federated.run_plan import Plan
from scaling_fl.federated.server_state import initial_extra, initial_moments
from scaling_fl.models import adapters, base, export, fingerprints, four_bit, gpus, loading, probe, selection
from scaling_fl.models.devices import find_devices
from scaling_fl.models.flat_parameters import Layout
from scaling_fl.progress import Send, waiting
from scaling_fl.runtime import out_of_memory, token_files
from scaling_fl.runtime.hardware import check_compiler, environment, free_port, threads_per_site
from scaling_fl.tracking import predictions_file


def prepare(send: Send, config: Config, folder: str, several_nodes: bool = False) -> None:
    """Fill the work folder and send the `Plan` as the event "prepared". Raises `UserError` on bad input."""
    loading.silence_library()
    work, notes = Path(folder), list[str]()
    devices = find_devices(config, notes)
    gpus.set_up(torch.device(devices[0]), config)  # the trial step needs the kernels of the workers

    def report(what: str, done: float, total: float, unit: str) -> None:
        send({"event": "working", "what": what, "done": done, "total": total, "unit": unit})

    send({"event": "said", "text": "reading the data"})
    with waiting(send, reads_over_network(config)):
        task = load_task(config, report)
    notes += task.notes
    digest = task.digest()
    held_back, trained, shards = make_shards(config, task.train, notes)
    if config.sites_per_round is not None and config.sites_per_round > len(shards):
        raise UserError(f"sites_per_round={config.sites_per_round}: there are {len(shards)} sites; lower it")
    method_constraints.check_cohort(config, len(shards), cohort.size(config, len(shards)))
    shards, tests = site_tests.make(config, shards, task.train.labels, task.test.labels, notes)
    rows = token_files.Rows(held_back, shards, tests)
    best_round.check(config.keep_best, task)
    notes += _selection_notes(config, len(held_back), len(task.train))
    notes += duplicates.notes(task.train, task.test)
    if len(held_back):
        compared = (task.train.take(trained), task.train.take(held_back))
        notes += duplicates.notes(*compared, "held-back", "remove duplicates from the training file")

    noise_multiplier = guarantee.noise_multiplier(config, len(shards))
    notes += guarantee.notes(config, len(shards), noise_multiplier)

    send({"event": "said", "text": f"loading model={config.model}"})
    with waiting(send):  # for a download, or a slow disk
        loaded = loading.load_model(config.model, task.classes, task.train.texts, config.max_seq_len, config.seed)
    notes += loaded.notes
    if config.gradient_checkpointing and not loaded.module.supports_gradient_checkpointing:
        raise UserError(f"gradient_checkpointing=True: {type(loaded.module).__name__} doesn't support it; leave it out")
    if config.compile:
        check_compiler(devices[0])
    if config.base_precision == "nf4":
        four_bit.check(torch.device(devices[0]))
    input_names = loading.input_names(loaded.module, task.train.pairs is not None)
    resume.check_finite(f"model={config.model}", _initial_state(config, loaded.module))
    with waiting(send):
        padding, resolved = _try_model(config, loaded, task.train, devices[0], notes)
    if task.predicts_tokens:
        token_files.check_tokenizer(config.model, loaded, task, config.prompt_template)
    with export.export_errors(config.model):
        loaded.module.config.save_pretrained(work / "model")
        if task.predicts_tokens:
            loaded.module.generation_config.save_pretrained(work / "model")
        tokenizer_files = export.save_tokenizer(loaded, work / "model", config.max_seq_len, input_names)
        loaded = export.as_rebuilt(loaded, work / "model")
    base.freeze(loaded.module, config, loaded.new_parameters)

    if not config.attention_mask:
        notes.append(
            "attention_mask=False: padding counts as text, so results depend on val_batch_size; pipelines use masks"
        )
    threads = threads_per_site(config)
    num_test = len(task.test)
    round_, finished, best, metrics, reported = 0, False, None, dict[str, Any](), False
    history = dict[str, dict[str, Any]]()
    layout = Layout(loaded.module)
    if config.personal is not None:
        selection.personal_positions(layout, config.personal)  # raises an error if it makes no sense
    initial, previous = _initial_state(config, loaded.module), None
    origin: dict[str, Any] = {
        "weights": fingerprints.pretrained(loaded, initial | base.arrays(loaded.module)), "architecture": loading.architecture(loaded.module),
        "padding": list(padding),
    }  # fmt: skip
    if config.checkpoints_dir is not None:
        checkpoints = CheckpointStore(config.checkpoints_dir)
        with waiting(send, not checkpoints.local):
            previous = checkpoints.fetch_newest(work / "state.safetensors")
        if previous is not None:
            tensors, header, _ = previous
            of_sites = resume.expected_site_state(config, layout, len(shards), tensors)
            resume.check(config, header, digest, origin, tensors, initial | of_sites, len(shards))
            round_, metrics, reported = header["round"], header["metrics"], header["reported"]
            history = header["history"] | ({str(round_): metrics} if reported else {})
            best = best_round.best_in_header(header, config.keep_best)
            threads = resume.agree_on_threads(config, threads, header, notes)
            resume.compare_environments(header["environment"], environment(resolved, devices), notes)
            exported = all(
                is_exported(checkpoints, name, of_round) for name, of_round in folders(config, round_, best).items()
            )
            finished = round_ >= config.num_rounds and exported
        if not finished:
            checkpoints.probe()
            if config.has_global_model:
                with export.export_errors(config.model):
                    export.check_export(loaded, work / "model", task.train.texts, task.train.pairs, config.merge)

    if previous is None:
        state_file.write_state(work / "state.safetensors", initial, {"round": 0})
    if not finished:
        base.write(work, loaded.module, config)
        if config.report and not task.predicts_tokens:
            predictions_file.write_texts(work, task.test)
        token_types = "token_type_ids" in input_names
        rows, more = token_files.write(send, report, config, work, task, loaded, tokenizer_files, token_types, rows)
        notes += more
        num_test = len(token_store.TokenStore(work / "test", loaded.tokenizer.pad_token_id))
        origin["tokens"] = fingerprints.tokens(work)
        if previous is not None:
            resume.check_origin(config, previous[1], origin)
    if previous is not None and (damaged := previous[2]):
        checkpoints.set_aside(newer_than=round_)
        notes += [f"{what}; it is set aside, and the previous checkpoint is used" for what in damaged]
    send(
        {
            "event": "prepared",
            "plan": Plan(
                config=config,
                folder=folder,
                round=round_,
                finished=finished,
                threads=threads,
                devices=devices,
                architecture=type(loaded.module).__name__,
                num_parameters=sum(e.shape.numel() for e in layout.entries if not adapters.is_delta(e.name))
                + sum(array.size for array in base.arrays(loaded.module).values()),
                num_trained=sum(entry.shape.numel() for entry in layout.entries if entry.start < layout.trained),
                new_parameters=tuple(loaded.new_parameters),
                label_names=task.classes,
                unit="conversations" if task.conversations else "blocks" if task.predicts_tokens else "examples",
                base_dtype=loaded.dtype,
                vocab_size=getattr(loaded.module.config, "vocab_size", 0),
                shard_sizes=tuple(map(len, rows.shards)),
                shard_entropies=tuple(label_entropy(task.train.labels[shard]) for shard in shards),
                num_train=sum(map(len, rows.shards)),
                num_test=num_test,
                num_truncated=0
                if finished or (task.predicts_tokens and not task.conversations)
                else token_files.num_truncated(work, trained, config.max_seq_len),
                data_digest=digest,
                pad_token_id=loaded.tokenizer.pad_token_id,
                environment=environment(resolved, devices),
                notes=tuple(notes),
                pad_left=padding.left,
                pad_to=padding.min_length,
                num_held_back=len(rows.held_back),
                noise_multiplier=noise_multiplier,
                site_test_sizes=tuple(map(len, rows.tests)),
                label_counts=tuple(
                    tuple(np.bincount(task.train.labels[shard], minlength=len(task.label_names)).tolist())
                    for shard in (() if task.predicts_tokens else shards)
                ),
                best=best,
                metrics=metrics,
                reported=reported,
                history=history,
                origin=origin,
                digests=fingerprints.node_digests(work, digest, origin["tokens"], initial | base.arrays(loaded.module))
                if several_nodes and not finished
                else {},
                port=free_port() if several_nodes else 0,
            ),
        }
    )


def _try_model(
    config: Config, loaded: loading.LoadedModel, train: Split, device: str, notes: list[str]
) -> tuple[probe.Padding, Config]:
    """Return how to pad, and `config` with the precision in which the model works. Raises `UserError` if none does."""
    paired = train.pairs is not None
    padding, texts = probe.prepare_padding(config.model, loaded, train.texts, paired, config.max_seq_len, notes)
    chosen = precision(config, torch.device(device))
    fallback = ("fp32",) if config.precision == "auto" and config.base_precision == "fp32" else ()
    for attempt in dict.fromkeys((chosen, *fallback)):
        try:
            with out_of_memory.explained(config, device, UserError):
                probe.check_step(
                    loaded.module, texts, padding, torch.device(device), AUTOCAST[attempt],
                    frozen=config.trainable != "all", reduced=config.base_precision != "fp32",
                )  # fmt: skip
        except UserError:
            raise
        except Exception as error:  # architectures raise anything
            failure = probe.reason(error)
            notes.append(f"precision={attempt}: model={config.model} fails in it ({failure})")
            continue
        if attempt != chosen:
            notes[-1] += f"; {attempt} is used"
        return padding, replace(config, precision=attempt)
    remedy = "use another model" if attempt == "fp32" else "set precision=fp32"
    raise UserError(f"{notes[-1]}; {remedy}{', or leave out deterministic' * ('deterministic' in failure)}")


def _initial_state(config: Config, module: torch.nn.Module) -> dict[str, Any]:
    layout = Layout(module)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    params = {entry.name: tensors[entry.name].detach().cpu().numpy() for entry in layout.entries}
    integers = {name: tensors[name].cpu().numpy() for name in layout.integer_names}
    moments = initial_moments(server.optimiser(config).initial_moments, params)
    return params | integers | moments | initial_extra(layout, algorithms.extra_size(config, layout))


def _selection_notes(config: Config, num_held_back: int, num_train: int) -> list[str]:
    notes = []
    if num_held_back:
        notes.append(f"{num_held_back:,} of {num_train:,} training rows are held back from all sites")
    if config.keep_best is not None and config.keep_best.startswith("validation."):
        notes.append(
            f"keep_best={config.keep_best} chooses by the test set, so the best round's test metrics are too "
            f"optimistic; validation_fraction=0.1 keep_best={config.keep_best.replace('validation', 'held_back')} "
            "chooses by rows that no site trains on"
        )
    return notes
