// pg-boss, tuned: one at a time by its worker, told of each job at once (notifyWorker), for it would poll twice a second at best; many
// by its fetch and complete in batches of 1,000, four at once, for its worker pauses after each batch.

import PgBoss from 'pg-boss';
import pg from 'pg';
import { CROWD, PAUSE, SINGLES, WARM, database, now, report, sleep, until } from './common.mjs';

const QUEUE = 'noop';
const pool = new pg.Pool({ connectionString: database, max: 1 });
const boss = new PgBoss({ connectionString: database, max: 10, schedule: false });
boss.on('error', (error) => console.error(error));
await boss.start();
await boss.createQueue(QUEUE);

const starts = new Map();
const worker = await boss.work(QUEUE, { batchSize: 1000, pollingIntervalSeconds: 0.5 }, async (jobs) => {
  const at = now();
  for (const { id } of jobs) starts.set(id, at);
});
const ids = [];
for (let job = 0; job < SINGLES + WARM; job++) {
  const id = await boss.send(QUEUE, {});
  boss.notifyWorker(worker);
  await until('a job has started', () => starts.has(id));
  ids.push(id);
  await sleep(PAUSE);
}
const { rows } = await pool.query(
  'select id, (extract(epoch from created_on) * 1000)::float8 as at from pgboss.job where id = any ($1::uuid[])',
  [ids],
);
const created = new Map(rows.map(({ id, at }) => [id, at]));
const latencies = ids.map((id) => starts.get(id) - created.get(id));
await boss.offWork(QUEUE);

for (let made = 0; made < CROWD; made += 1000) {
  await boss.insert(Array.from({ length: Math.min(1000, CROWD - made) }, () => ({ name: QUEUE })));
}
const began = now();
const drained = await Promise.all(
  Array.from({ length: 4 }, async () => {
    let count = 0;
    for (;;) {
      const jobs = await boss.fetch(QUEUE, { batchSize: 1000 });
      if (!jobs.length) return count;
      await boss.complete(QUEUE, jobs.map(({ id }) => id));
      count += jobs.length;
    }
  }),
);
const took = now() - began;
const done = drained.reduce((sum, count) => sum + count, 0);
if (done !== CROWD) throw new Error(`${done} of ${CROWD} jobs were done`);
await boss.stop({ graceful: false });
await pool.end();
report('pg-boss', latencies, (CROWD * 1000) / took);
process.exit(0);
