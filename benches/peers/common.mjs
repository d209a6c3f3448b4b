// What the peers written in JavaScript share: the way in and out of a measurement. Arguments: the database, how many jobs one at a
// time, how many to drain. Prints one line of JSON: version, milliseconds from insert to start of each job, jobs drained per second.

import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';

const [url, singles, crowd] = process.argv.slice(2);
export const database = url;
export const SINGLES = Number(singles);
export const CROWD = Number(crowd);
// Before they count: connections open, and code is compiled.
export const WARM = 5;
// Longer than any peer takes to be idle again.
export const PAUSE = 60;

// The clock that Postgres on this machine reads, too; Date would cut it to whole milliseconds.
export const now = () => performance.timeOrigin + performance.now();
export { sleep };

// Until a condition holds, at most two minutes.
export async function until(what, condition) {
  const end = now() + 120_000;
  while (!(await condition())) {
    if (now() > end) throw new Error(`not within two minutes: ${what}`);
    await sleep(5);
  }
}

export function report(name, latencies, drain) {
  const { version } = createRequire(import.meta.url)(`./node_modules/${name}/package.json`);
  console.log(JSON.stringify({ version, latencies: latencies.slice(WARM), drain }));
}
