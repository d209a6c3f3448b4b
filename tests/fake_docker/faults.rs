//! What goes wrong with a call because a test said so. What goes wrong by itself is weather.

use std::collections::HashMap;
use std::time::Duration;

use super::Call;

/// What goes wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It happens, but later. `heal` ends the wait.
    Slow(Duration),
    /// It happens; the answer comes later. `heal` ends the wait.
    Late(Duration),
    /// It happens once `heal` is called; until then no answer. As when containerd is stopped.
    Hang,
    /// It does not happen; this status and message.
    Status(u16, &'static str),
    /// It happens; the connection closes without an answer.
    LostResponse,
    /// It happens; a stream stays open after its end, anything else gets no answer, until `heal`.
    Mute,
    /// It happens; the answer is cut in half.
    Truncated,
    /// It does not happen; the answer is an empty list, as of a daemon that has lost its memory.
    Empty,
    /// It does not happen; the answer begins, and nothing follows until `heal`.
    Silent,
}

struct Rule {
    /// The first that was made and matches is the one that counts.
    number: u64,
    call: Option<Call>,
    fault: Fault,
    left: usize,
}

/// What was injected and has not happened yet: by the name of a container, or for any (`None`). A call looks at two entries, however
/// many containers have rules of their own.
#[derive(Default)]
pub(super) struct Rules {
    rules: HashMap<Option<String>, Vec<Rule>>,
    made: u64,
}

impl Rules {
    pub(super) fn add(&mut self, call: Option<Call>, container: Option<String>, fault: Fault, times: usize) {
        if times > 0 {
            self.made += 1;
            self.rules.entry(container).or_default().push(Rule { number: self.made, call, fault, left: times });
        }
    }

    /// The fault of this call, which is then used up by one.
    pub(super) fn take(&mut self, call: Call, container: Option<&str>) -> Option<Fault> {
        let mut keys = vec![None];
        keys.extend(container.map(|name| Some(name.to_owned())));
        let matching = keys.into_iter().filter_map(|key| {
            let rules = self.rules.get(&key)?;
            let index = rules.iter().position(|rule| rule.call.is_none_or(|wanted| wanted == call))?;
            Some((rules[index].number, key, index))
        });
        let (_, key, index) = matching.min_by_key(|(number, ..)| *number)?;
        let rules = self.rules.get_mut(&key)?;
        rules[index].left -= 1;
        let fault = rules[index].fault.clone();
        if rules[index].left == 0 {
            rules.remove(index);
        }
        if rules.is_empty() {
            self.rules.remove(&key);
        }
        Some(fault)
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }
}
