-- The tables of Sundown: three kinds of fact about an agent, each in a table of its own.
--
--   agent          what was asked      written once, by sundown.submit
--   agent_live     what is happening   hot and narrow; holds only agents that are alive now
--   agent_outcome  how it ended        written once, by the statement that deletes the live row
--
-- The main path: submit writes agent and agent_live; a launcher places the live row on a host; a sweeper ends it when `due_at`
-- comes; the finish moves what was seen into agent_outcome. `due_at` is the whole scheduler: it says when somebody must look at
-- the row again, and claiming pushes it forward, so a claim whose holder dies comes due by itself. `epoch` is the fence: every
-- claim adds one, every later write names it.
--
-- Lock order, wherever a statement takes more than one: agent_live rows in order of id, then host_slot.
-- The functions, triggers and partitions are made by the files of sql/functions, which every `migrate` applies again.
set local lock_timeout = '5s';

create table sundown.installation (
    one               boolean primary key default true constraint installation_one check (one),
    id                uuid not null default gen_random_uuid(),
    system_identifier bigint not null,
    database_oid      oid not null,
    default_ttl       interval not null default '1 hour',
    max_ttl           interval not null default '1 day',
    retention         interval not null default '30 days',
    log_retention     interval not null default '7 days',
    release           text not null default '0.0.0',
    fingerprint       text not null default '',
    constraint installation_ttl check (default_ttl > interval '0' and default_ttl <= max_ttl),
    constraint installation_retention check (retention >= interval '1 hour' and log_retention >= interval '1 hour')
);
comment on table sundown.installation is 'Who we are: one row. Bound to one database of one cluster, so that a copy does nothing until it is adopted.';
comment on column sundown.installation.id is 'The installation that containers and volumes are labelled with.';
comment on column sundown.installation.system_identifier is 'The cluster that this row was bound to; differs in a restored dump, equal on a promoted standby.';
comment on column sundown.installation.database_oid is 'The database that this row was bound to; differs in a clone made by CREATE DATABASE … TEMPLATE.';
comment on column sundown.installation.default_ttl is 'The ttl of an agent that names none. Written by serve and migrate when told.';
comment on column sundown.installation.max_ttl is 'The longest life that any agent may have. Written by serve and migrate when told.';
comment on column sundown.installation.retention is 'How long outcomes and events are kept.';
comment on column sundown.installation.log_retention is 'How long the tails of logs are kept.';
comment on column sundown.installation.release is 'The newest release whose functions were applied here; an older one leaves them alone.';
comment on column sundown.installation.fingerprint is 'SHA-256 of the functions as applied, so that a start finds nothing to do without locking anything.';

create table sundown.agent (
    id            uuid primary key,
    tenant        text not null,
    name          text,
    image         text not null,
    command       text[] not null,
    env_keys      text[] not null,
    labels        jsonb not null,
    cpus          numeric(6, 3) not null,
    memory        bigint not null,
    pids          integer not null,
    network       text not null constraint agent_network check (network in ('none', 'bridge')),
    ttl           interval not null,
    max_ttl       interval not null,
    grace         interval not null,
    start_timeout interval not null,
    queue_timeout interval,
    run_at        timestamptz,
    created_at    timestamptz not null,
    constraint agent_durations check (ttl > interval '0' and ttl <= max_ttl and grace >= interval '0' and start_timeout > interval '0')
) partition by range (id);
-- Written once, so it costs one entry for each label; without it a label that few carry would be looked for in all of history.
create index agent_labels on sundown.agent using gin (labels jsonb_path_ops);
comment on table sundown.agent is 'What was asked for. Written once, by sundown.submit; never updated. Partitioned by the week in the id.';
comment on column sundown.agent.id is 'UUIDv7 from the database''s clock, so ids sort by submission.';
comment on column sundown.agent.tenant is 'On whose behalf. For keys and for people; every tenant shares the hosts.';
comment on column sundown.agent.name is 'For people; need not be unique.';
comment on column sundown.agent.image is 'As given. Must be on the host already; nothing is pulled.';
comment on column sundown.agent.command is 'Arguments to the image''s entrypoint; empty: the image''s own.';
comment on column sundown.agent.labels is 'Strings by name, for finding agents; on the container below the prefix sundown.label.';
comment on column sundown.agent.pids is 'Limit of processes and threads.';
comment on column sundown.agent.network is 'none: loopback only; bridge: the daemon''s default network.';
comment on column sundown.agent.created_at is 'When it was submitted, by the database''s clock.';
comment on column sundown.agent.env_keys is 'Names of the environment variables; their values are in agent_secret until the end.';
comment on column sundown.agent.memory is 'Limit in bytes; there is no swap beyond it.';
comment on column sundown.agent.cpus is 'Limit in cores.';
comment on column sundown.agent.ttl is 'Time to live as asked, counted from running.';
comment on column sundown.agent.max_ttl is 'The longest that extensions may make this life, counted from running.';
comment on column sundown.agent.grace is 'Time between the stop signal and SIGKILL.';
comment on column sundown.agent.start_timeout is 'Time from placement on a host by which the container must run.';
comment on column sundown.agent.queue_timeout is 'How long it may wait for a place; null: as long as it takes.';
comment on column sundown.agent.run_at is 'Not to be started before; null: at once.';

create table sundown.agent_live (
    id            uuid primary key,
    due_at        timestamptz not null,
    expires_at    timestamptz,
    host          integer not null default 0,
    epoch         integer not null default 0,
    leased_by     integer,
    attempts      smallint not null default 0,
    state         text not null default 'pending' constraint agent_live_state check (state in ('pending', 'running', 'terminating')),
    reason        text,
    actor         text,
    ttl           interval not null,
    max_ttl       interval not null,
    grace         interval not null,
    start_timeout interval not null,
    queue_until   timestamptz,
    placed_at     timestamptz,
    started_at    timestamptz,
    decided_at    timestamptz,
    signalled_at  timestamptz,
    killed_at     timestamptz,
    observed_at   timestamptz,
    container_id  text,
    ended_state   text,
    ended_reason  text,
    exit_code     integer,
    oom_killed    boolean,
    error         text,
    constraint agent_live_placed check ((host = 0) = (placed_at is null)),
    constraint agent_live_deadline check (host = 0 or expires_at is not null),
    constraint agent_live_container check (container_id is null or host <> 0),
    constraint agent_live_running check (state <> 'running' or (started_at is not null and container_id is not null)),
    constraint agent_live_reason check ((state = 'terminating') = (reason is not null) and (reason is null) = (decided_at is null)),
    constraint agent_live_reasons check (reason in ('ttl_expired', 'terminated', 'queue_timeout')),
    constraint agent_live_signals check (signalled_at is null or state = 'terminating'),
    -- An end that was found after a signal of ours is ours: by itself it ended only if the first look, before any signal, said so.
    constraint agent_live_first_look check (signalled_at is null or ended_state is null or ended_state = 'expired'),
    constraint agent_live_facts check ((observed_at is null) = (ended_state is null) and (ended_state is null) = (ended_reason is null))
) with (
    fillfactor = 80,
    -- Vacuum by count: the table is small and hot, and truncating it would take an exclusive lock.
    vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000
);
-- The scheduler's index. It serves every claim, in exactly this order.
create index agent_live_due on sundown.agent_live (host, due_at, id);
-- Empty unless agents with a queue_timeout wait: rows leave it when they are placed.
create index agent_live_patience on sundown.agent_live (queue_until) where host = 0 and queue_until is not null;
comment on table sundown.agent_live is 'Agents that have not ended. One row each, deleted by the statement that writes the outcome.';
comment on column sundown.agent_live.due_at is 'When somebody must look at this row again: a start, a deadline, the next step of a stop, the end of a lease. Written by every claim and by terminate, extend.';
comment on column sundown.agent_live.expires_at is 'The deadline: the stop signal goes out now. Provisional from placement, tightened once at running, moved only by extend.';
comment on column sundown.agent_live.host is 'Where it was placed, once; 0 waits for a place. Written by the placing claim.';
comment on column sundown.agent_live.epoch is 'The fence. Every claim and terminate adds one; every later write names it. Never falls.';
comment on column sundown.agent_live.leased_by is 'The replica at work on it until due_at; null: nobody. For people; correctness rests on epoch.';
comment on column sundown.agent_live.state is 'pending, running or terminating; the guard allows only legal transitions.';
comment on column sundown.agent_live.queue_until is 'How long it waits for a place; null: as long as it takes.';
comment on column sundown.agent_live.placed_at is 'When it was placed on its host. Written by the placing claim.';
comment on column sundown.agent_live.started_at is 'When its container was found running: its ttl counts from here.';
comment on column sundown.agent_live.ended_reason is 'Why, as the outcome will say.';
comment on column sundown.agent_live.exit_code is 'As Docker reported it. Written with observed_at.';
comment on column sundown.agent_live.oom_killed is 'As Docker reported it. Written with observed_at.';
comment on column sundown.agent_live.attempts is 'Claims of the present step (start, signal, kill, clean-up) so far.';
comment on column sundown.agent_live.reason is 'Why Sundown ends it. Committed before the act.';
comment on column sundown.agent_live.actor is 'Who asked for the end: a role, a client, or sundown itself at the deadline.';
comment on column sundown.agent_live.ttl is 'The effective ttl: as asked, or as last extended.';
comment on column sundown.agent_live.decided_at is 'When the end was decided. Written with reason.';
comment on column sundown.agent_live.signalled_at is 'When the stop signal was about to be sent. Written before it is.';
comment on column sundown.agent_live.killed_at is 'When SIGKILL was about to be sent. Written by the claim that leads to it.';
comment on column sundown.agent_live.observed_at is 'When the end was seen; the facts beside it are then final. Written once, by the first step of the finish.';
comment on column sundown.agent_live.container_id is 'Written once, by the launcher, before the start.';
comment on column sundown.agent_live.ended_state is 'What the outcome will say.';
comment on column sundown.agent_live.error is 'The last error of the work on it, in words.';

create table sundown.agent_outcome (
    id           uuid primary key,
    state        text not null constraint agent_outcome_state check (state in ('succeeded', 'failed', 'expired')),
    reason       text not null constraint agent_outcome_reason check (reason in ('exited', 'oom_killed', 'vanished', 'host_lost', 'image_missing',
                     'start_failed', 'start_timeout', 'name_conflict', 'terminated', 'ttl_expired', 'queue_timeout')),
    actor        text,
    host         integer not null,
    container_id text,
    exit_code    integer,
    oom_killed   boolean,
    error        text,
    ttl          interval not null,
    attempts     smallint not null,
    epoch        integer not null,
    expires_at   timestamptz,
    placed_at    timestamptz,
    started_at   timestamptz,
    decided_at   timestamptz,
    signalled_at timestamptz,
    killed_at    timestamptz,
    observed_at  timestamptz,
    finished_at  timestamptz not null,
    constraint agent_outcome_honest check (
        -- A check that is neither true nor false lets the row in, so the exit code must not be unknown to it.
        (state = 'succeeded' and reason = 'exited' and exit_code is not distinct from 0)
        or (state = 'failed' and reason not in ('terminated', 'ttl_expired', 'queue_timeout') and (reason <> 'exited' or coalesce(exit_code, 0) <> 0))
        or (state = 'expired' and reason in ('terminated', 'ttl_expired', 'queue_timeout')))
) partition by range (id);
create index agent_outcome_state on sundown.agent_outcome (state, id);
-- For upkeep, which asks for the youngest of a week while it holds the table: 22 bytes for each agent, written at the right edge.
create index agent_outcome_finished on sundown.agent_outcome (finished_at);
comment on table sundown.agent_outcome is 'How each agent ended. The primary key is the promise: one end, once. Never updated.';
comment on column sundown.agent_outcome.observed_at is 'When its end was seen.';
comment on column sundown.agent_outcome.state is 'succeeded: it exited with 0; failed: otherwise, could not start, or was lost; expired: Sundown stopped it.';
comment on column sundown.agent_outcome.reason is 'Why it ended.';
comment on column sundown.agent_outcome.actor is 'Who asked for the end, if somebody did.';
comment on column sundown.agent_outcome.decided_at is 'When Sundown decided to end it; null if it ended by itself.';
comment on column sundown.agent_outcome.finished_at is 'When the end was written: its container is gone by then.';
comment on column sundown.agent_outcome.exit_code is 'As Docker reported it; 137 and 143 are SIGKILL and SIGTERM.';

create table sundown.agent_secret (
    id  uuid primary key,
    env jsonb not null
);
comment on table sundown.agent_secret is 'Values of environment variables. Deleted with the live row.';

create table sundown.agent_log (
    id        uuid primary key,
    tail      bytea not null,
    truncated boolean not null,
    taken_at  timestamptz not null
) partition by range (id);
comment on table sundown.agent_log is 'The last 64 KiB that an agent wrote, as bytes. Kept for log_retention.';
comment on column sundown.agent_log.truncated is 'Whether there was more before it.';

create table sundown.event (
    at           timestamptz not null default clock_timestamp(),
    xid          xid8 not null default pg_current_xact_id(),
    seq          bigint generated always as identity,
    id           uuid not null,
    kind         text not null constraint event_kind check (kind in ('state', 'extended')),
    was          text,
    state        text not null,
    reason       text,
    actor        text,
    host         integer not null,
    epoch        integer not null,
    container_id text,
    expires_at   timestamptz,
    exit_code    integer,
    primary key (at, seq)
) partition by range (at);
create index event_cursor on sundown.event (xid, seq);
create index event_agent on sundown.event (id, seq);
comment on table sundown.event is 'One row per transition, written by triggers in the same commit. Append-only. Read it in order of (xid, seq), up to the snapshot''s xmin: nothing is skipped then.';
comment on column sundown.event.xid is 'The transaction that did it: the first half of the cursor.';
comment on column sundown.event.seq is 'Order within a transaction: the second half of the cursor.';
comment on column sundown.event.kind is 'state: it changed state; extended: its deadline was moved.';
comment on column sundown.event.was is 'The state before; null for a submission.';

create table sundown.agent_key (
    tenant      text not null,
    key         text not null,
    id          uuid not null,
    fingerprint bytea not null,
    until       timestamptz not null,
    primary key (tenant, key)
);
create index agent_key_until on sundown.agent_key (until);
comment on table sundown.agent_key is 'Idempotency keys: the same key and body name the same agent until `until`.';
comment on column sundown.agent_key.fingerprint is 'SHA-256 of what was asked for.';

create table sundown.host (
    id         integer generated always as identity primary key,
    uuid       uuid not null unique,
    name       text not null,
    endpoint   text not null,
    seen_at    timestamptz not null
);
comment on table sundown.host is 'Docker hosts, one row each, known by the UUID in their volume sundown-host-<installation>.';
comment on column sundown.host.name is 'What the daemon calls its machine. For people.';
comment on column sundown.host.endpoint is 'How the replica that last registered it reaches it. For people.';

create table sundown.host_slot (
    host     integer primary key,
    capacity integer not null constraint host_slot_capacity check (capacity >= 0),
    used     integer not null default 0 constraint host_slot_used check (used >= 0),
    cordoned boolean not null default false
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
comment on table sundown.host_slot is 'How many agents each host may carry, and carries. Changed by the statements that place and finish.';
comment on column sundown.host_slot.cordoned is 'No new agents; those that it has live on. Written by `sundown host cordon`.';
comment on column sundown.host_slot.capacity is 'How many it may carry. Written by the replica that last registered it.';
comment on column sundown.host_slot.used is 'How many it carries: placed and not ended. Written by place, finish.';

create table sundown.keeper (
    host    integer primary key,
    replica integer not null,
    until   timestamptz not null
) with (fillfactor = 50);
comment on table sundown.keeper is 'Which replica watches which host. A hint about who is first, never needed for an end.';

create table sundown.replica (
    id         integer generated always as identity primary key,
    name       text not null,
    release    text not null,
    hosts      integer[] not null default '{}',
    listening  boolean not null default false,
    started_at timestamptz not null,
    seen_at    timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
comment on table sundown.replica is 'One row per start of a process; an id is never used again. For people: nothing depends on it.';
comment on column sundown.replica.listening is 'Whether notifications reach it; if not, it polls.';
