"""Peers that dial in: GPU workers and tools workers behind NAT, and the jobs they are given.

Both ends of the line are here; what a job means is not. From the gateway's side:

    hub.py       the hub of a process: who is connected, here or elsewhere, and who gets a job
    peer.py      one connected peer and its jobs, an `Answer` each
    elsewhere.py peers that other processes hold the connection to
    messages.py  the messages, both ways (docs/workers.md)
    dialer.py    the peer's end: dials, announces, takes jobs, reconnects; what does a job is given to it

A job is a request as small as HTTP's: a path, a body, and an answer of status, headers and pieces. A GPU worker gets
`chat/completions`; a tools worker `execute` with a JSON body. Whoever has a job to give says whom it is for:

    answer = await hub.open(Wanted("worker", account, lambda offer: offer.serves(model)), Request(path, body), limits)
    result = await hub.ask(Wanted("tools_worker", account, lambda offer: offer.tool(name)), Request("execute", body), 5.0)
    offers = [seat.offer for seat in hub.seats("tools_worker", account)]      # what is there now, without any wait

`open` raises `UpstreamError`s as `ports.Provider.open` does, the answer as `ports.Answer`.
"""
