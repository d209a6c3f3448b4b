-- Which of these agents have ended. $1 ids. No locks.
select o.id from sundown.agent_outcome o where o.id = any ($1::uuid[])
