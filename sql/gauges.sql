-- What /metrics says about the database. No parameters, no locks. Always one row.
select (select count(*) from sundown.agent_live where state = 'pending') as pending,
       (select count(*) from sundown.agent_live where state = 'running') as running,
       (select count(*) from sundown.agent_live where state = 'terminating') as terminating,
       (select count(*) from sundown.overdue) as overdue
