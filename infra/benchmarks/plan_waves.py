"""The event loop of `plan.py`: one wave of songs through a graph of stages on simulated workers.

What it keeps of Ray Data and of pipelines/run/graph.py: CPUs are tickets, and an actor holds its own; actors take songs in batches and
share their worker's GPU; the last stages start first; a stage stops when what it put out fills its part of the object stores; a host's
turns and connections (pipelines/acquire/host_limits.py) are everybody's; a spot worker that goes takes its jobs and its songs with it.
"""

import heapq
import math
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run has, and how `prepare` is told to use it."""

    workers: int
    """Each with one GPU, shared by a separating and an encoding actor."""
    cpus: int = 4
    store_gb: float = 16 * 0.3 * 0.5
    """A worker's object store as Ray Data uses it: half of 30% of its memory."""
    downloads: int = 8
    hosts: int = 16
    requests_per_s: float = 1.0
    connections: int = 2
    latency_s: float = 0.5
    connection_mb_s: float = 5.0
    wave: int = 5_000
    batch: int = 4
    compact_every: int = 0
    """Waves between two `compact`s; 0: never."""
    preempted_every_h: float = 0.0
    """Mean life of a spot worker; 0: they live on."""
    replaced_s: float = 300.0
    rejects: tuple[float, float, float] = (0.02, 0.01, 0.02)
    """Shares of songs that acquire, read and segment reject; they go through the rest at no cost."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One operator of the graph; arrays are by song."""

    name: str
    cpu_s: Floats
    gpu_s: Floats | None = None
    out_mb: Floats | None = None
    tickets: float = 1.0
    """CPUs that a task takes; an actor holds its own all the time."""
    actors: int = 0
    """A worker's; 0: tasks."""
    most: int = sys.maxsize
    """Tasks at once, over all workers."""
    batch: int = 1
    share: float = 1.0
    """Of the GPU, while another actor uses it too; alone an actor has all of it."""
    hosts: "Hosts | None" = None


class Hosts:
    """Politeness as in pipelines/acquire/host_limits.py: a host's next free slot, then one of its connections."""

    def __init__(self, cluster: Cluster, of_song: Sequence[int]) -> None:
        self.cluster, self.of_song = cluster, of_song
        self.last_s = [-math.inf] * cluster.hosts
        self.free_s = [[0.0] * cluster.connections for _ in range(cluster.hosts)]

    def end_s(self, song: int, now_s: float, transfer_s: float) -> float:
        """When a download that begins to wait now is done."""
        host = self.of_song[song]
        self.last_s[host] = max(now_s, self.last_s[host] + 1 / self.cluster.requests_per_s)
        end_s = max(self.last_s[host], self.free_s[host][0]) + transfer_s
        heapq.heapreplace(self.free_s[host], end_s)
        return end_s


@dataclass(kw_only=True)
class Run:
    """What a simulated wave, or several, did; by stage: process seconds, waiting seconds of songs, highest MB of what it had put out."""

    seconds: float = 0.0
    songs: int = 0
    busy_s: Floats
    gpu_s: Floats
    wait_s: Floats
    peak_mb: Floats
    redone: int = 0

    @classmethod
    def empty(cls, stages: int) -> "Run":
        return cls(busy_s=np.zeros(stages), gpu_s=np.zeros(stages), wait_s=np.zeros(stages), peak_mb=np.zeros(stages))

    def add(self, wave: "Run") -> None:
        """What the next wave did."""
        self.seconds, self.songs, self.redone = self.seconds + wave.seconds, self.songs + wave.songs, self.redone + wave.redone
        self.busy_s, self.gpu_s, self.wait_s = self.busy_s + wave.busy_s, self.gpu_s + wave.gpu_s, self.wait_s + wave.wait_s
        self.peak_mb = np.maximum(self.peak_mb, wave.peak_mb)


class Wave:
    """The event loop over one wave of songs. Time begins at `start_s`; actors are ready `actor_start_s` later."""

    def __init__(
        self, stages: Sequence[Stage], cluster: Cluster, songs: Sequence[int], seed: int, start_s: float, actor_start_s: float
    ) -> None:
        self.stages, self.cluster, self.now_s = stages, cluster, start_s
        self.start_s, self.actor_start_s = start_s, actor_start_s
        count, nodes = len(stages), cluster.workers
        self.draws = np.random.default_rng([seed, 7])
        self.run = replace(Run.empty(count), songs=len(songs))
        self.queues: list[deque[int]] = [deque() for _ in stages]
        self.queues[0].extend(songs)
        self.left = [len(songs)] * count
        self.running = [0] * count
        self.held_mb = [0.0] * count
        self.blocked = [False] * count
        self.budget_mb = 1000 * cluster.store_gb * nodes / max(1, sum(stage.out_mb is not None for stage in stages))
        self.free = [0.0] * nodes
        self.idle: list[list[int]] = [[] for _ in stages]
        self.gpu: list[dict[int, list[float]]] = [{} for _ in range(nodes)]
        """By node: job → [GPU seconds left, share]."""
        self.gpu_at = [(0.0, 0)] * nodes
        self.jobs: dict[int, tuple[int, list[int], int, float]] = {}
        """Stage, songs, node and begin of each job."""
        self.queued_s: dict[int, float] = {}
        self.home: dict[int, int] = {}
        self.life = [0] * nodes
        self.events: list[tuple[float, int, str, int, int]] = []
        self.number = 0
        for node in range(nodes):
            self._up(node)

    def _at(self, seconds: float, kind: str, one: int, two: int = 0) -> None:
        self.number += 1
        heapq.heappush(self.events, (seconds, self.number, kind, one, two))

    def finish(self) -> Run:
        """Run until every song is out."""
        self._dispatch()
        while self.left[-1]:
            self.now_s, _, kind, one, two = heapq.heappop(self.events)
            getattr(self, f"_{kind}")(one, two)
            self._dispatch()
        self.run.seconds = self.now_s - self.start_s
        return self.run

    def _up(self, node: int, _: int = 0) -> None:
        """A worker is there; its actors begin to load."""
        self.life[node] += 1
        self.free[node] = self.cluster.cpus - sum(stage.actors * stage.tickets for stage in self.stages)
        self._at(self.now_s + self.actor_start_s, "ready", node, self.life[node])
        if self.cluster.preempted_every_h:
            self._at(self.now_s + self.draws.exponential(3600 * self.cluster.preempted_every_h), "lost", node)

    def _ready(self, node: int, life: int) -> None:
        if life == self.life[node]:
            for index, stage in enumerate(self.stages):
                self.idle[index] += [node] * stage.actors

    def _lost(self, node: int, _: int) -> None:
        """A spot worker goes: its jobs begin anew, and what it held of read songs is read anew."""
        self.life[node] += 1
        self.free[node] = -math.inf
        self.gpu[node].clear()
        for idle in self.idle:
            idle[:] = [other for other in idle if other != node]
        for job in [job for job, held in self.jobs.items() if held[2] == node]:
            index, songs, _, begun_s = self.jobs.pop(job)
            self.held_mb[index] -= self._mb(index, songs)
            self.running[index] -= 1
            self.run.busy_s[index] += self.now_s - begun_s
            self.run.redone += len(songs)
            self.queues[index].extendleft(reversed(songs))
        first = next(index for index, stage in enumerate(self.stages) if stage.hosts is None)  # media are in the storage
        for index in range(first + 1, len(self.stages)):
            gone = [song for song in self.queues[index] if self.home[song] == node]
            if gone:
                self.queues[index] = deque(song for song in self.queues[index] if self.home[song] != node)
                self.held_mb[index - 1] -= self._mb(index - 1, gone)
                self.queues[first].extendleft(gone)
                self.run.redone += len(gone)
                for again in range(first, index):
                    self.left[again] += len(gone)
        self._at(self.now_s + self.cluster.replaced_s, "up", node)

    def _mb(self, index: int, songs: Sequence[int]) -> float:
        out_mb = self.stages[index].out_mb
        return 0.0 if out_mb is None else float(sum(out_mb[song] for song in songs))

    def _dispatch(self) -> None:
        """Start what can start, the last stages first, as Ray Data prefers what frees memory."""
        before = list(self.blocked)
        for index in reversed(range(len(self.stages))):
            while self.queues[index] and self._start(index):
                pass
        if self.blocked != before:  # a stage waits no more for a full batch when the one before it may not put out more
            self._dispatch()

    def _start(self, index: int) -> bool:
        stage, queue = self.stages[index], self.queues[index]
        self.blocked[index] = False
        if stage.actors:
            if not self.idle[index]:
                return False
            before = self.left[index - 1] if index else 0
            if len(queue) < stage.batch and before and not self.blocked[index - 1]:
                return False
            node = self.idle[index][-1]
        else:
            if self.running[index] >= stage.most:
                return False
            node = max(range(len(self.free)), key=self.free.__getitem__)
            if self.free[node] < stage.tickets:
                return False
        songs = [queue[at] for at in range(min(stage.batch, len(queue)))]
        out_mb = self._mb(index, songs)
        self.blocked[index] = self.held_mb[index] > 1e-6 and self.held_mb[index] + out_mb > self.budget_mb
        if self.blocked[index]:
            return False
        for song in songs:
            queue.popleft()
            self.run.wait_s[index] += self.now_s - self.queued_s.get(song, self.start_s)
        if stage.actors:
            self.idle[index].pop()
        else:
            self.free[node] -= stage.tickets
        self.running[index] += 1
        self.held_mb[index] += out_mb
        self.run.peak_mb[index] = max(self.run.peak_mb[index], self.held_mb[index])
        cpu_s = float(sum(stage.cpu_s[song] for song in songs))
        end_s = stage.hosts.end_s(songs[0], self.now_s, cpu_s) if stage.hosts and cpu_s else self.now_s + cpu_s
        self.number += 1
        self.jobs[self.number] = (index, songs, node, self.now_s)
        self._at(end_s, "computed", self.number)
        return True

    def _computed(self, job: int, _: int) -> None:
        """A job's processor part is over; what its GPU has to do follows."""
        if job not in self.jobs:
            return
        index, songs, node = self.jobs[job][:3]
        gpu_s = self.stages[index].gpu_s
        seconds = 0.0 if gpu_s is None else float(sum(gpu_s[song] for song in songs))
        if seconds:
            self._advance(node)
            self.gpu[node][job] = [seconds, self.stages[index].share]
            self._next(node)
        else:
            self._done(job)

    def _advance(self, node: int) -> None:
        """Time passes on a GPU: its jobs share it."""
        since_s, version = self.gpu_at[node]
        shares = sum(share for _, share in self.gpu[node].values())
        for job, left in self.gpu[node].items():
            done_s = (self.now_s - since_s) * left[1] / shares
            left[0] -= done_s
            self.run.gpu_s[self.jobs[job][0]] += done_s
        self.gpu_at[node] = (self.now_s, version + 1)

    def _next(self, node: int) -> None:
        if self.gpu[node]:
            shares = sum(share for _, share in self.gpu[node].values())
            soonest_s = min(left * shares / share for left, share in self.gpu[node].values())
            self._at(self.now_s + max(0.0, soonest_s), "slice", node, self.gpu_at[node][1])

    def _slice(self, node: int, version: int) -> None:
        if version != self.gpu_at[node][1]:
            return
        self._advance(node)
        for job in [job for job, (left, _) in self.gpu[node].items() if left < 1e-6]:
            del self.gpu[node][job]
            self._done(job)
        self._next(node)

    def _done(self, job: int) -> None:
        index, songs, node, begun_s = self.jobs.pop(job)
        stage = self.stages[index]
        self.running[index] -= 1
        self.run.busy_s[index] += self.now_s - begun_s
        self.left[index] -= len(songs)
        if index:
            self.held_mb[index - 1] -= self._mb(index - 1, songs)
        if stage.actors:
            self.idle[index].append(node)
        else:
            self.free[node] += stage.tickets
        if index + 1 < len(self.stages):
            self.queues[index + 1].extend(songs)
            for song in songs:
                self.home[song], self.queued_s[song] = node, self.now_s
        else:
            self.held_mb[index] -= self._mb(index, songs)
