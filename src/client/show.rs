//! How things look to people: durations, tables, and what happened in sentences. What an agent supplies never reaches a terminal as a control
//! sequence.

use std::io::{self, Write};

use jiff::Timestamp;
use serde_json::Value;

/// A duration as people say it, as in 4m10s.
pub fn span(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded, and none is negative")]
    let s = seconds.clamp(0.0, 3.2e9).round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86400, s % 86400 / 3600),
    }
}

/// Seconds from now to an instant; negative: it is over. `None`: there is none.
pub fn until(at: &Value) -> Option<f64> {
    let at: Timestamp = at.as_str()?.parse().ok()?;
    #[expect(clippy::disallowed_methods, reason = "for people to look at; it decides nothing")]
    let now = Timestamp::now();
    Some(at.duration_since(now).as_secs_f64())
}

/// "3m20s ago".
pub fn ago(at: &Value) -> String {
    until(at).map_or_else(|| "–".to_owned(), |seconds| format!("{} ago", span(-seconds)))
}

/// Text, with what a terminal would obey made visible.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A text of a record, or nothing.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => plain(text),
        other => plain(&other.to_string()),
    }
}

/// How its time stands.
pub fn time(agent: &Value) -> String {
    match agent["state"].as_str() {
        Some("pending") => format!("waits {}", until(&agent["created_at"]).map(|s| span(-s)).unwrap_or_default()),
        Some("running") => match until(&agent["expires_at"]) {
            Some(left) if left > 0.0 => format!("in {}", span(left)),
            _ => "now".to_owned(),
        },
        Some("terminating") => "ending".to_owned(),
        _ => ago(&agent["finished_at"]),
    }
}

/// Rows for `ls` and `top`.
pub fn agents(agents: &[Value]) -> Vec<Vec<String>> {
    let head = ["ID", "NAME", "STATE", "DEADLINE", "HOST", "IMAGE", "COMMAND"].map(str::to_owned).to_vec();
    let row = |agent: &Value| {
        let command: Vec<String> = agent["command"].as_array().into_iter().flatten().map(text).collect();
        let state = match (&agent["reason"], &agent["exit_code"]) {
            (Value::String(reason), Value::Number(code)) if agent["finished_at"].is_string() => {
                format!("{} ({reason}, {code})", text(&agent["state"]))
            }
            (Value::String(reason), _) if agent["finished_at"].is_string() => format!("{} ({reason})", text(&agent["state"])),
            _ => text(&agent["state"]),
        };
        let cells =
            [text(&agent["id"]), text(&agent["name"]), state, time(agent), text(&agent["host"]), text(&agent["image"]), command.join(" ")];
        cells.to_vec()
    };
    std::iter::once(head).chain(agents.iter().map(row)).collect()
}

/// Rows under each other; the last column is cut to `width`, if there is one.
pub fn table(out: &mut dyn Write, rows: &[Vec<String>], width: Option<usize>) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> =
        (0..columns).map(|n| rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        let line: String = line.trim_end().chars().take(width.unwrap_or(usize::MAX)).collect();
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// What happened, in a sentence.
pub fn sentence(event: &Value) -> String {
    let who = match text(&event["actor"]) {
        who if who.is_empty() => "somebody".to_owned(),
        who => who,
    };
    let (reason, code) = (text(&event["reason"]), text(&event["exit_code"]));
    if event["kind"] == "extended" {
        return format!("its deadline was moved to {}", text(&event["expires_at"]));
    }
    match event["state"].as_str().unwrap_or_default() {
        "pending" => format!("{who} submitted it"),
        "running" => format!("it began to run on {}, until {} at the latest", text(&event["host"]), text(&event["expires_at"])),
        "terminating" => match reason.as_str() {
            "ttl_expired" => "its time was up".to_owned(),
            "terminated" => format!("{who} asked for its end"),
            "queue_timeout" => "it had waited too long for a place".to_owned(),
            _ => format!("it was to end: {reason}"),
        },
        "succeeded" => "it ended by itself, with exit code 0".to_owned(),
        "failed" => match reason.as_str() {
            "exited" => format!("it ended by itself, with exit code {code}"),
            "oom_killed" => "it needed more memory than it may have, and was killed for it".to_owned(),
            "image_missing" => "its image is not on the host".to_owned(),
            "vanished" => "its container was removed by somebody else".to_owned(),
            "start_timeout" => "it did not start in time".to_owned(),
            _ => format!("it failed: {reason}"),
        },
        "expired" if event["container_id"].is_null() => "it is over, and never ran".to_owned(),
        "expired" if code.is_empty() => "it is gone".to_owned(),
        "expired" => format!("it is gone, with exit code {code}"),
        other => plain(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        for (seconds, said) in [(-3.0, "0s"), (0.4, "0s"), (59.4, "59s"), (250.0, "4m10s"), (3661.0, "1h01m"), (90_000.0, "1d1h")] {
            assert_eq!(span(seconds), said);
        }
    }

    #[test]
    fn nothing_that_an_agent_supplies_commands_a_terminal() {
        let agent = json!({"id": "1", "name": "\u{1b}[2J", "state": "running", "image": "a", "command": ["x\r\n\u{7}", "\u{9b}1m"]});
        let mut out = Vec::new();
        table(&mut out, &agents(&[agent]), None).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.lines().count() == 2 && !out.chars().any(|c| c.is_control() && c != '\n'), "{out:?}");
    }
}
