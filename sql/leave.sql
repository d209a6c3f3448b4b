-- A replica that goes gives back what it has in hand, and its hosts. Under a new epoch: what it has in hand may go on for a moment.
-- $1 replica, $2 now. Locks its own rows. Returns how many leases were given back.
with mine as materialized (
    select l.id from sundown.agent_live l where l.leased_by = $1 and l.due_at > coalesce($2, statement_timestamp()) order by l.id for update
), back as (
    update sundown.agent_live l set leased_by = null, epoch = l.epoch + 1, due_at = coalesce($2, statement_timestamp())
     where l.id = any (array(select m.id from mine m)) returning l.id
), kept as (
    delete from sundown.keeper k where k.replica = $1
), gone as (
    delete from sundown.replica r where r.id = $1
)
select count(*) as given_back from back
