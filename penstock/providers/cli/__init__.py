"""A local agent command line (Claude Code, Codex, Gemini, `llm`, or any other) as an upstream.

    templates   how each command is called and what its output means, as data
    prompt      from a chat request to the text a command is given
    output      from what a command prints to text, usage, end and error
    bounds      an output limit and stop sequences, which no command takes
    completion  the answer in OpenAI's wire format
    command     one running command, with its process group and its streams
    keeper      the small program between the gateway and the command, which outlives neither
    provider    all of it as `ports.Provider`

`templates`, `prompt`, `output`, `bounds` and `completion` do no I/O.
"""
