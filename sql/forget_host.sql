-- Declares a host lost. $1 host. Locks its rows. Returns how many agents were lost with it.
select sundown.forget_host($1) as lost
