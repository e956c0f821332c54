"""Which offer a call goes to: who is well (`health`), in which order (`rank`), and looking at everybody (`pulse`).

Below the data path and the operations, which both ask it. It opens no call and moves no money.
"""
