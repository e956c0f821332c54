"""Peers that dial in: GPU workers and tools workers behind NAT, and the jobs they are given.

Both ends of the line are here; what a job means is not. From the gateway's side:

    hub.py       the hub of a process: who is connected, here or elsewhere, and who gets a job
    roll.py      who is there by whom they may serve, and the jobs that wait for one of them
    peer.py      one connected peer and its jobs, an `Answer` each
    elsewhere.py peers that other processes hold the connection to
    messages.py  the messages, both ways (docs/workers.md)
    dialer.py    the peer's end: dials, announces, takes jobs, reconnects; what does a job is given to it

A job is a request as small as HTTP's: a path, a body, and an answer of status, headers and pieces. A GPU worker gets
`chat/completions`; a tools worker `execute` with a JSON body. Whoever has a job to give says whom it is for:

    wanted = Wanted("worker", account, model)
    answer = await hub.open(wanted, Request(path, body), limits, patience_s=5.0)      # a `ports.Answer`, in pieces
    wanted = Wanted("tools_worker", account, tool)
    result = await hub.ask(wanted, Request("execute", body), 5.0)                     # bytes, as a whole
    offers = [seat.offer for seat in hub.seats("tools_worker", account)]              # what is there, without a wait

`open` raises `UpstreamError`s as `ports.Provider.open` does, the answer as `ports.Answer`. Who looks for peers before
any is connected to its own process calls `hub.watch()` once: then those of other processes are known within a second.

The other end is a `Dialer` with an `Offer` and a coroutine that does a `GivenJob`:

    async def work(job: GivenJob) -> None:
        result = execute(await job.body())
        await job.head(200, {"content-type": "application/json"})
        await job.piece(result)

    await Dialer(url, "/api/tools/v1/connect", key, Offer(slots=4, tools=tools), work, agent="…").run()
"""
