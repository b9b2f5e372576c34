"""A worker process: it opens the files of the preparation, and runs its sites through the rounds."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from scaling_fl.data import choices, token_store
from scaling_fl.distributed import fused_sum, shared_tensors
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated import algorithms, cohort, fast_dropout, rounds, server
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.run_plan import Plan
from scaling_fl.federated.server_state import ServerState, fill_state
from scaling_fl.federated.site_state import SiteStateStore
from scaling_fl.federated.worker_sites import Shards, SiteTests, WorkerSites
from scaling_fl.models import base, gpus, loading
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.progress import Send
from scaling_fl.runtime import out_of_memory
from scaling_fl.runtime.coordinator import Coordinator
from scaling_fl.runtime.worker_progress import WorkerProgress
from scaling_fl.state_file import TensorFiles


def work(send: Send, plan: Plan, rank: int, memory: SharedMemory) -> None:
    """Run worker `rank`. Worker 0 is the coordinator: it reports the rounds and writes the checkpoints."""
    with out_of_memory.explained(plan.config, plan.devices[rank]):
        _work(send, plan, rank, memory)


def _work(send: Send, plan: Plan, rank: int, memory: SharedMemory) -> None:
    loading.silence_library()
    torch.set_num_threads(plan.threads)
    rendezvous = plan.rendezvous or f"file://{plan.folder}/rendezvous"
    folder, device = Path(plan.folder), torch.device(plan.devices[rank])
    gpus.set_up(device, plan.config)
    if device.type == "cpu":
        fast_dropout.enable()
    shards = Shards(folder)
    num_sites, precision = len(shards.sizes), plan.environment["precision"]  # as the data and the hardware have them
    config = dataclasses.replace(
        plan.config, num_sites=num_sites, precision=precision, dp_noise_multiplier=plan.noise_multiplier
    )
    module = loading.rebuild_model(folder / "model")
    base.attach(folder, module, config, plan.new_parameters)

    def on_wait(waiting: bool) -> None:
        send.progress()
        send.waiting = waiting

    optimiser, layout = server.optimiser(config), Layout(module)
    collectives = Collectives(
        rank, plan.devices, layout.size + algorithms.extra_size(config, layout), memory, rendezvous, len(optimiser.initial_moments), on_wait,
        nodes=plan.nodes, interface=plan.interface,
        exact=config.exact_sum, single_site=cohort.single_site_per_worker(config, num_sites, len(plan.devices)),
    )  # fmt: skip
    if rank == 0 and collectives.transport_note:
        send({"event": "said", "text": f"note: {collectives.transport_note}"})
    if rank == 0 and config.exact_sum and (why := fused_sum.refusal(device)):
        needed = "Triton" if device.type == "cuda" else "a C compiler"
        send({"event": "said", "text": f"note: sums of deltas are slower than with {needed}: {why}"})
    if device.type == "cuda" and config.trainable != "all":
        frozen = base.tensors(module)
        placed, shared = shared_tensors.share(collectives, frozen, device)
        for name, tensor in placed.items():
            frozen[name].data = tensor
        if not shared and rank == 0:
            send({"event": "said", "text": "note: each process on a GPU holds its own copy of the frozen weights"})
    module = module.to(device)
    flat = collectives.model_buffer(device)
    model = FlatModel(module, flat, arbitrary=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the parameters now live in the collectives' buffer

    # Workers on one node share the state; each has its own integer buffers.
    if rank == 0 or (collectives.is_leader and not plan.nodes):
        fill_state(model, collectives.state, TensorFiles(folder / "state.safetensors"))
    else:
        model.fill_integers(TensorFiles(folder / "state.safetensors"))
    collectives.broadcast_state() if plan.nodes else collectives.barrier()  # no site trains before the state is set
    state = ServerState(
        collectives.state[0],
        model.layout.trained,
        plan.round,
        moments=collectives.state[1:],
        size=layout.size,
        results=dict(plan.metrics),
    )

    store = SiteStateStore(folder / "kept", folder / "state.safetensors") if config.keeps_site_state else None
    coordinator = Coordinator(send, plan, model, collectives.state, state, store) if rank == 0 else None
    if coordinator is not None:
        send.on_stop = coordinator.stop
    progress = WorkerProgress(send, rank)
    # Fewer lengths, and lengths that matrix units like.
    multiple = 8 if device.type == "cuda" and config.attention_mask else 1
    padding = (plan.pad_token_id, plan.pad_left, plan.pad_to, multiple)
    resident = Resident(
        config=config,
        model=model,
        train=token_store.TokenStore(folder / "train", *padding),
        test=token_store.TokenStore(folder / "test", *padding),
        device=device,
        on_step=progress.step,
        on_alive=send.progress,
        held_back=np.load(folder / "held_back.npy"),
        new_parameters=plan.new_parameters,
        store=store,
        choices=choices.read(folder / "choices", plan.pad_token_id),
        tokenizer=AutoTokenizer.from_pretrained(folder / "model") if config.generate_examples else None,
    )
    tests = None
    if config.site_test is not None:
        store_of_tests = resident.train if config.site_test == "held_back" else resident.test
        tests = SiteTests(store_of_tests, Shards(folder / "site_tests"))
    worker_sites = WorkerSites(resident, shards, rank, len(plan.devices), tests)

    def on_round_end(state: ServerState, results: dict[str, float]) -> None:
        progress.restart(state.round + 1)
        if coordinator is not None:
            coordinator.report(results)

    progress.restart(state.round + plan.reported)
    rounds.run(config, worker_sites, collectives, state, optimiser, on_round_end, plan.reported, progress)
    if coordinator is not None:
        coordinator.finish()
    collectives.close()
