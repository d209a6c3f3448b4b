-- Whether this database is the one that the installation was bound to, and may be written: a restored dump, a clone and a standby
-- are not, and nothing may be started, ended or removed on their word.
create or replace function sundown.bound() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select not pg_is_in_recovery() and exists (
        select from sundown.installation i
         where i.system_identifier = (select s.system_identifier from pg_control_system() s)
           and i.database_oid = (select d.oid from pg_database d where d.datname = current_database()))
$$;
comment on function sundown.bound() is 'True in the database that the installation is bound to; false in a copy of it.';

-- Binds the installation to this database. The original must be gone: two that are bound to the same containers would fight over them.
-- As somebody new, it leaves the original's containers alone for ever and ends what this copy believed to be alive.
create or replace function sundown.adopt(as_new boolean default false) returns uuid
language plpgsql as $$
declare
    h integer;
begin
    insert into sundown.installation as i (system_identifier, database_oid)
    select s.system_identifier, d.oid from pg_control_system() s, pg_database d where d.datname = current_database()
    on conflict (one) do update
       set system_identifier = excluded.system_identifier, database_oid = excluded.database_oid,
           id = case when as_new then excluded.id else i.id end;
    if as_new then
        for h in select id from sundown.host order by id loop
            perform sundown.forget_host(h);
        end loop;
        -- Also those that wait: the original starts them; started here too, they would run twice.
        perform l.id from sundown.agent_live l where l.host = 0 order by l.id for update;
        perform sundown.end_unplaced(array(select l.id from sundown.agent_live l where l.host = 0), 'terminated', 'sundown adopt', statement_timestamp());
    end if;
    return (select id from sundown.installation);
end $$;
comment on function sundown.adopt(boolean) is 'Binds the installation to this database, after a restore; as_new for a copy that lives beside its original.';
