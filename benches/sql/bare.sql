-- A table that does nothing but be inserted into: what a queue of one's own would begin with.
create schema bare;
create table bare.job (
    id         bigint generated always as identity primary key,
    image      text not null,
    command    text[] not null,
    ttl        interval not null,
    created_at timestamptz not null default clock_timestamp()
);
