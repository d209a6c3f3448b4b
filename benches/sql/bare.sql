-- Tables that do nothing but be written: what a queue of one's own would begin with. No triggers, no events, no partitions.
create schema bare;
create table bare.job (
    id         bigint generated always as identity primary key,
    image      text not null,
    command    text[] not null,
    ttl        interval not null,
    created_at timestamptz not null default clock_timestamp()
);
create table bare.live (
    id         uuid primary key,
    due_at     timestamptz not null,
    expires_at timestamptz not null,
    host       integer not null,
    epoch      integer not null default 0,
    state      text not null default 'running',
    decided_at timestamptz
) with (fillfactor = 80);
create index on bare.live (host, due_at, id);
create table bare.outcome (
    id          uuid primary key,
    state       text not null,
    host        integer not null,
    exit_code   integer not null,
    expires_at  timestamptz not null,
    decided_at  timestamptz not null,
    finished_at timestamptz not null
);
