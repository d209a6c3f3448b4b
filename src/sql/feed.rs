//! The questions of those who follow events.

use std::fmt;
use std::str::FromStr;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{Param, Sql};
use crate::error::Error;

/// A place between two events: after this one, in the order in which none is missed. As text `xid.seq`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    xid: u64,
    seq: i64,
}

/// One event as JSON, and the place after it.
#[derive(Debug)]
pub struct Event {
    /// After it.
    pub place: Place,
    /// Whose it is.
    pub agent: Uuid,
    /// What happened.
    pub json: String,
}

impl Sql {
    /// Where whoever reads from now on begins, and the oldest event that is kept.
    pub async fn events_now(&self) -> Result<(Place, Option<Place>), Error> {
        let rows = self.rows(super::EVENTS_NOW, &[]).await?;
        let row = rows.first().ok_or_else(|| Error::Internal("there is no now".to_owned()))?;
        let (now, oldest): (String, Option<String>) = (row.try_get("xid")?, row.try_get("oldest_xid")?);
        let oldest = match oldest {
            Some(xid) => Some(Place { xid: number(&xid)?, seq: row.try_get("oldest_seq")? }),
            None => None,
        };
        Ok((Place { xid: number(&now)?, seq: 0 }, oldest))
    }

    /// Everything that happened to an agent, each as JSON, in order. Empty: unknown, or longer ago than is kept.
    pub async fn story(&self, id: Uuid) -> Result<Vec<String>, Error> {
        let rows = self.rows(super::STORY, &[(&id, Type::UUID)]).await?;
        let events = rows.iter().map(|row| row.try_get::<_, Option<String>>("event")).collect::<Result<Vec<_>, _>>()?;
        if events.is_empty() {
            return Err(Error::Unavailable("a statement that always answers did not".to_owned()));
        }
        Ok(events.into_iter().flatten().collect())
    }

    /// At most `limit` events after a place, in order. Fewer: there are no more yet.
    pub async fn events_after(&self, place: Place, limit: i64) -> Result<Vec<Event>, Error> {
        let xid = place.xid.to_string();
        let params: &[Param<'_>] = &[(&xid, Type::TEXT), (&place.seq, Type::INT8), (&limit, Type::INT8)];
        let event = |row: &tokio_postgres::Row| {
            let xid: String = row.try_get("xid")?;
            let place = Place { xid: number(&xid)?, seq: row.try_get("seq")? };
            Ok(Event { place, agent: row.try_get("id")?, json: row.try_get("event")? })
        };
        self.rows(super::EVENTS_AFTER, params).await?.iter().map(event).collect()
    }
}

fn number(xid: &str) -> Result<u64, Error> {
    xid.parse().map_err(|_| Error::Internal(format!("{xid:?} is no transaction's number")))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.xid, self.seq)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (xid, seq) = text.split_once('.').ok_or(())?;
        let place = Self { xid: xid.parse().map_err(drop)?, seq: seq.parse().map_err(drop)? };
        if place.seq < 0 { Err(()) } else { Ok(place) }
    }
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn a_place_is_read_as_it_is_written_and_nothing_else_is_one() {
        let place = Place { xid: 18_446_744_073_709_551_615, seq: i64::MAX };
        assert_eq!(place.to_string().parse(), Ok(place));
        for text in ["", "1", "1.", ".1", "1.-1", "-1.1", "1.1.1", "1.x", "99999999999999999999.1"] {
            assert_eq!(text.parse::<Place>(), Err(()), "{text}");
        }
        assert!(Place { xid: 1, seq: 9 } < Place { xid: 2, seq: 1 });
    }
}
