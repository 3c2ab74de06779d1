"""The safety gateway: an HTTP service on top of the engine, for applications (extra ``serve``).

settings     what the operator decides; keys and what each may do
app          HTTP: OpenAI's shapes, errors, limits, the page
dispatching  a bounded queue and batches that mix prompts, seeds and policies
workers      one process per device, in which the engine runs
ledger       a chained record of every picture and review
"""
