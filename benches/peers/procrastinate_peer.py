"""procrastinate with 16 jobs at once, told of each by LISTEN. Arguments and output as in common.mjs."""

import asyncio
import json
import logging
import sys
import time
from importlib.metadata import version

import procrastinate
import psycopg

DATABASE, SINGLES, CROWD = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
WARM = 5
PAUSE = 0.06

logging.disable(logging.CRITICAL)
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DATABASE, max_size=20))
starts: dict[int, float] = {}


@app.task(name="noop", pass_context=True)
async def noop(context):
    starts[context.job.id] = time.time()


async def until(what, condition):
    end = time.monotonic() + 120
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within two minutes: {what}")
        await asyncio.sleep(0.005)


def work(wait):
    return app.run_worker_async(concurrency=16, wait=wait, install_signal_handlers=False)


async def one_at_a_time():
    worker = asyncio.create_task(work(wait=True))
    await asyncio.sleep(1)
    ids = []
    for _ in range(SINGLES + WARM):
        ids.append(await noop.defer_async())
        await until("a job has started", lambda: ids[-1] in starts)
        await asyncio.sleep(PAUSE)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    async with await psycopg.AsyncConnection.connect(DATABASE) as connection:
        query = "select job_id, extract(epoch from at)::float8 from procrastinate_events where type = 'deferred' and job_id = any (%s)"
        created = dict(await (await connection.execute(query, [ids])).fetchall())
    return [(starts[id] - created[id]) * 1000 for id in ids]


async def drained():
    starts.clear()
    await noop.batch_defer_async(*[{} for _ in range(CROWD)])
    await work(wait=False)
    if len(starts) != CROWD:
        raise RuntimeError(f"{len(starts)} of {CROWD} jobs were done")
    return CROWD / (time.time() - min(starts.values()))


async def main():
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        latencies = await one_at_a_time()
        drain = await drained()
    print(json.dumps({"version": version("procrastinate"), "latencies": latencies[WARM:], "drain": drain}))


asyncio.run(main())
