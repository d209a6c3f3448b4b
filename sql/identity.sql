-- Who the database says we are, and whether it may be believed.
-- No parameters, no locks. No row: not migrated.
select i.id as installation, sundown.bound() as bound from sundown.installation i
