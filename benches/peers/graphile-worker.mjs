// graphile-worker with the settings of its own published benchmark: 24 jobs at once, a local queue of 500 that it refills after 10 ms,
// completions in batches.

import { Logger, run } from 'graphile-worker';
import pg from 'pg';
import { CROWD, PAUSE, SINGLES, WARM, database, now, report, sleep, until } from './common.mjs';

const pool = new pg.Pool({ connectionString: database, max: 2 });
let started = () => {};

const options = {
  connectionString: database,
  noHandleSignals: true,
  logger: new Logger(() => () => {}),
  taskList: { noop: (payload) => started(payload) },
  preset: {
    worker: {
      concurrentJobs: 24,
      maxPoolSize: 25,
      localQueue: { size: 500, refetchDelay: { durationMs: 10 } },
      completeJobBatchDelay: 0,
      failJobBatchDelay: 0,
    },
  },
};
const begin = async () => {
  const worker = await run(options);
  worker.promise.catch(() => {});
  return worker;
};

let worker = await begin();
const latencies = [];
started = ({ at }) => void latencies.push(now() - at);
for (let job = 0; job < SINGLES + WARM; job++) {
  await pool.query("select graphile_worker.add_job('noop', json_build_object('at', extract(epoch from clock_timestamp()) * 1000))");
  await until('a job has started', () => latencies.length > job);
  await sleep(PAUSE);
}
await worker.stop();

await pool.query(
  `select graphile_worker.add_jobs(array(
     select json_populate_record(null::graphile_worker.job_spec, json_build_object('identifier', 'noop', 'payload', json_build_object('at', 0)))
       from generate_series(1, $1::int)))`,
  [CROWD],
);
let first = 0;
let done = 0;
started = () => {
  first ||= now();
  done++;
};
worker = await begin();
await until('all jobs have started', () => done >= CROWD);
// Completions come in batches, later: a job is over when its row is gone.
const left = async () => (await pool.query('select exists (select from graphile_worker._private_jobs) as left')).rows[0].left;
await until('all jobs are done', async () => !(await left()));
const took = now() - first;
await worker.stop();
await pool.end();
report('graphile-worker', latencies, (CROWD * 1000) / took);
