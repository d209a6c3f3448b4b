//! What users say about an agent: the body of a submission, and durations. Knows no SQL and no HTTP; bounds and names are judged by
//! `sundown.submit`, so that psql and HTTP are told the same, and only shapes are judged here.
//!
//! Guarantees: what parses can be sent to Postgres (no NUL, finite numbers); a refusal names the field and never repeats a value.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SpanRelativeTo, Timestamp, Unit};
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::error::Error;

/// Longer than any life, shorter than what an interval of Postgres cannot hold: about a hundred years.
const ABSURD: f64 = 3.2e9;
const DURATION: &str = r#"Give a duration such as "90s", "1h30m", "PT15M", or a number of seconds."#;

/// What was asked for, as it came. Durations in seconds.
#[derive(Default)]
pub struct Submission {
    /// Name of the image.
    pub image: String,
    /// Arguments.
    pub command: Vec<String>,
    /// Seconds from running.
    pub ttl: Option<f64>,
    /// Seconds.
    pub max_ttl: Option<f64>,
    /// Seconds.
    pub grace: Option<f64>,
    /// For people.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Cores.
    pub cpus: Option<f64>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Processes.
    pub pids: Option<i32>,
    /// none or bridge.
    pub network: Option<String>,
    /// RFC 3339.
    pub run_at: Option<String>,
    /// Seconds.
    pub start_timeout: Option<f64>,
    /// Seconds.
    pub queue_timeout: Option<f64>,
}

/// The body's fields before each is read by itself, so that a refusal can name the field. `null` is as good as absent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(borrow)]
    image: Option<&'a RawValue>,
    command: Option<&'a RawValue>,
    ttl: Option<&'a RawValue>,
    max_ttl: Option<&'a RawValue>,
    grace: Option<&'a RawValue>,
    name: Option<&'a RawValue>,
    labels: Option<&'a RawValue>,
    env: Option<&'a RawValue>,
    cpus: Option<&'a RawValue>,
    memory: Option<&'a RawValue>,
    pids: Option<&'a RawValue>,
    network: Option<&'a RawValue>,
    run_at: Option<&'a RawValue>,
    start_timeout: Option<&'a RawValue>,
    queue_timeout: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extension<'a> {
    #[serde(borrow)]
    ttl: Option<&'a RawValue>,
}

impl Submission {
    /// Reads the body of a submission.
    ///
    /// # Errors
    /// Refused, with a code for each kind of mistake.
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let f: Fields<'_> = object(body)?;
        let submission = Self {
            image: read("image", f.image, "a string")?.unwrap_or_default(),
            command: read("command", f.command, "a list of strings")?.unwrap_or_default(),
            ttl: duration("ttl", f.ttl)?,
            max_ttl: duration("max_ttl", f.max_ttl)?,
            grace: duration("grace", f.grace)?,
            name: read("name", f.name, "a string")?,
            labels: read("labels", f.labels, "an object of strings")?.unwrap_or(Pairs(BTreeMap::new())).0,
            env: read("env", f.env, "an object of strings")?.unwrap_or(Pairs(BTreeMap::new())).0,
            cpus: number("cpus", f.cpus, "Give the number of cores, as in 0.5.")?,
            memory: f.memory.map(memory).transpose()?,
            pids: number("pids", f.pids, "Give the number of processes that it may have.")?,
            network: read("network", f.network, "a string")?,
            run_at: f.run_at.map(instant).transpose()?,
            start_timeout: duration("start_timeout", f.start_timeout)?,
            queue_timeout: duration("queue_timeout", f.queue_timeout)?,
        };
        if submission.image.is_empty() {
            return Err(Error::invalid("missing_image", "there is no image", r#"Name the image to run, as in "busybox:1.36"."#));
        }
        submission.without_nul()
    }

    fn without_nul(self) -> Result<Self, Error> {
        let pairs = |map: &BTreeMap<String, String>| map.iter().any(|(key, value)| key.contains('\0') || value.contains('\0'));
        let single = [Some(&self.image), self.name.as_ref(), self.network.as_ref()];
        let holder = if self.command.iter().any(|argument| argument.contains('\0')) {
            "command"
        } else if pairs(&self.labels) {
            "labels"
        } else if pairs(&self.env) {
            "env"
        } else if single.into_iter().flatten().any(|text| text.contains('\0')) {
            "image, name or network"
        } else {
            return Ok(self);
        };
        Err(Error::invalid(
            "invalid_text",
            format!("there is a NUL character in {holder}"),
            "Leave it out; neither Postgres nor a process can take it.",
        ))
    }
}

/// Reads the body of an extension: the new ttl in seconds.
///
/// # Errors
/// Refused, with a code for each kind of mistake.
pub fn extension(body: &[u8]) -> Result<f64, Error> {
    let fields: Extension<'_> = object(body)?;
    duration("ttl", fields.ttl)?
        .ok_or_else(|| Error::invalid("missing_ttl", "there is no ttl", r#"Send {"ttl": "10m"}: it then ends ten minutes from now."#))
}

/// Reads a duration as people write it, `90s`, `1h30m`, `1d`, `PT15M` or a number of seconds, as seconds. A day has 24 hours.
///
/// # Errors
/// A sentence that says why it is none.
pub fn seconds(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let seconds = match text.parse::<f64>() {
        Ok(seconds) => seconds,
        Err(_) => text
            .parse::<jiff::Span>()
            .and_then(|span| span.total((Unit::Second, SpanRelativeTo::days_are_24_hours())))
            .map_err(|_error| "it is not a duration".to_owned())?,
    };
    bounded(seconds)
}

fn bounded(seconds: f64) -> Result<f64, String> {
    if seconds.is_finite() && seconds.abs() <= ABSURD { Ok(seconds) } else { Err("it is longer than a hundred years".to_owned()) }
}

/// The object in a body. Its fields stay unread, so this costs no more than the body itself, however deeply it nests.
fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    let text =
        std::str::from_utf8(body).map_err(|_error| Error::invalid("invalid_utf8", "the body is not UTF-8", "Send JSON in UTF-8."))?;
    // A list would be taken for the fields in their order.
    if matches!(text.trim_start().as_bytes().first(), Some(b'[' | b'"' | b'0'..=b'9' | b't' | b'f' | b'n' | b'-')) {
        return Err(Error::invalid("invalid_body", "the body is not an object", r#"Send an object, as in {"image": "busybox:1.36"}."#));
    }
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let place = format!("line {}, column {}", error.line(), error.column());
        match (error.classify(), message.split_once(", expected ")) {
            (Category::Data, Some((what, fields))) if what.starts_with("unknown field") => {
                let fields = fields.split(" at line ").next().unwrap_or_default().trim_start_matches("one of ").replace('`', "");
                Error::invalid("unknown_field", clip(what), format!("Leave it out or correct its name; there are: {fields}."))
            }
            (Category::Data, _) if message.starts_with("duplicate field") => repeated(&message),
            _ => Error::invalid(
                "invalid_json",
                format!("the body is not JSON: {} ({place})", reason(&message)),
                "Send one JSON object and nothing after it.",
            ),
        }
    })
}

/// One field's value, of the type that it must have.
fn read<'a, T: Deserialize<'a>>(field: &str, value: Option<&'a RawValue>, expected: &str) -> Result<Option<T>, Error> {
    let Some(value) = value else { return Ok(None) };
    serde_json::from_str(value.get()).map(Some).map_err(|error| match error.to_string() {
        message if message.starts_with("duplicate field") => repeated(&message),
        _ => mistyped(field, expected),
    })
}

fn number<T: std::str::FromStr>(field: &str, value: Option<&RawValue>, hint: &str) -> Result<Option<T>, Error> {
    let Some(value) = value.map(RawValue::get) else { return Ok(None) };
    if !value.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        return Err(mistyped(field, "a number"));
    }
    value.parse().map(Some).map_err(|_error| Error::invalid(&format!("invalid_{field}"), format!("`{field}` is out of range"), hint))
}

fn duration(field: &str, value: Option<&RawValue>) -> Result<Option<f64>, Error> {
    let Some(value) = value else { return Ok(None) };
    let read = if value.get().starts_with('"') {
        read::<String>(field, Some(value), "a duration")?.map(|text| seconds(&text))
    } else if value.get().starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        value.get().parse::<f64>().ok().map(bounded)
    } else {
        None
    };
    match read {
        Some(Ok(seconds)) => Ok(Some(seconds)),
        Some(Err(problem)) => Err(Error::invalid(&format!("invalid_{field}"), format!("`{field}`: {problem}"), DURATION)),
        None => Err(mistyped(field, "a duration: a string or a number")),
    }
}

/// Bytes, or a number with one of the binary units that Docker's own command line takes.
fn memory(value: &RawValue) -> Result<i64, Error> {
    let hint = r#"Give bytes, or a whole number with a unit, as in "64m" or "1g"."#;
    if !value.get().starts_with('"') {
        return number("memory", Some(value), hint)?.ok_or_else(|| mistyped("memory", "a number"));
    }
    let text = read::<String>("memory", Some(value), "a number or a string")?.unwrap_or_default().trim().to_ascii_lowercase();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(Error::invalid("invalid_memory", "`memory` is not an amount of bytes", hint)),
    };
    let bytes = digits.parse::<i64>().ok().and_then(|amount| amount.checked_mul(1 << shift));
    bytes.ok_or_else(|| Error::invalid("invalid_memory", "`memory` is not an amount of bytes", hint))
}

fn instant(value: &RawValue) -> Result<String, Error> {
    let text: String = read("run_at", Some(value), "a string")?.unwrap_or_default();
    match text.parse::<Timestamp>() {
        // What is before 1970 or beyond four digits is far outside of what may be asked for, and not every such text is one to Postgres.
        Ok(at) if (0..=253_402_300_799).contains(&at.as_second()) => Ok(at.to_string()),
        _ => {
            Err(Error::invalid("invalid_run_at", "`run_at` is not an instant", r#"Give it with its offset, as in "2026-01-31T18:00:00Z"."#))
        }
    }
}

fn mistyped(field: &str, expected: &str) -> Error {
    Error::invalid("invalid_body", format!("`{field}` is not {expected}"), format!("Give {expected} for `{field}`, or leave it out."))
}

fn repeated(message: &str) -> Error {
    Error::invalid("duplicate_field", clip(message.split(" at line ").next().unwrap_or_default()), "Give each field once.")
}

/// What the reader says about broken JSON, without the place that it appends.
fn reason(message: &str) -> String {
    clip(message.split(" at line ").next().unwrap_or_default())
}

fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Strings by name, each name once: the last of two would win silently.
struct Pairs(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Once)
    }
}

struct Once;

impl<'de> Visitor<'de> for Once {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if pairs.contains_key(&key) {
                return Err(A::Error::custom(format!("duplicate field `{key}`")));
            }
            pairs.insert(key, value);
        }
        Ok(Pairs(pairs))
    }
}

#[cfg(test)]
mod tests;
