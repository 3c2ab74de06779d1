"""The safety gateway: an HTTP service on top of the engine, for applications (extra ``serve``).

settings   what the operator decides
server     the running service, from start to end
http       routes in OpenAI's shapes, errors, limits, the page
rights     keys, and which policies and amounts they may ask for
working    a bounded queue, batches that mix prompts, seeds and policies, and the workers
hosting    what a worker does: the engine, partial pictures, explanations, reviews
ledger     a chained record of every picture and review
jobs       what travels between them
"""
