-- Ids: UUIDv7 from the database's clock. 48 bits of milliseconds, then 12 bits of the millisecond's fraction, so that ids minted
-- one after another sort in that order; the rest is random.
create or replace function sundown.uuidv7(at timestamptz) returns uuid
language sql volatile parallel safe as $$
    select encode(set_byte(set_byte(
               overlay(uuid_send(gen_random_uuid()) placing substring(int8send(us / 1000) from 3) from 1 for 6),
               6, 112 | (fraction >> 8)), 7, fraction & 255), 'hex')::uuid
      from (select us, ((us % 1000) * 4096 / 1000)::integer as fraction
              from (select (extract(epoch from at) * 1000000)::bigint as us) microseconds) parts
$$;
comment on function sundown.uuidv7(timestamptz) is 'A new UUIDv7 for that instant.';

-- The smallest UUIDv7 of an instant: the bound between partitions.
create or replace function sundown.uuid_floor(at timestamptz) returns uuid
language sql immutable parallel safe as $$
    select (encode(substring(int8send((extract(epoch from at) * 1000)::bigint) from 3), 'hex') || repeat('0', 20))::uuid
$$;
comment on function sundown.uuid_floor(timestamptz) is 'The smallest id that a submission at that instant may have.';
