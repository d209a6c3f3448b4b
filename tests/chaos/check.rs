//! The judge: folds what clients were told, what the database recorded, what the kernel showed and what was done to it all into the
//! promises, after the run and from its files alone.
//!
//! Bounds are in healthy time: instants at which Postgres took a write, the daemon answered and a replica said that it was ready. The
//! names S1 to S17 and L1 to L11 are those of the guarantees in the documentation.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;
use uuid::Uuid;

use super::record::{Beat, Call, Course, Dir, Event, Injected, Kind, Millis, Op, Plan, Probe, Row, Said, Sign, TakenOver};

/// How far two looks at the same instant may lie apart: a sampling step, a scheduler that was busy.
const BLUR: Millis = 300;
/// Healthy milliseconds until a wish is taken up, or what has ended by itself is recorded, beside what a crowd costs: a lease and a look
/// at the list, and then some.
const TAKEN_UP: Millis = 20_000;
/// Faults in which nothing can be done although every part answers its probe.
const PARALYSIS: [&str; 5] = ["table locked", "statement timeouts", "containerd silent", "connections exhausted", "serializable"];
/// Faults after which the daemon may not know how a container ended.
const OF_MEMORY: [&str; 4] = ["dockerd killed", "dockerd restart", "containerd silent", "shim killed"];
/// Faults that a start may fail from.
const OF_STARTS: [&str; 3] = ["dockerd killed", "dockerd restart", "shim killed"];
/// How long a start may take, in milliseconds.
const START_TIMEOUT: Millis = 60_000;
/// Faults that lay hands on containers, so that they may end in other ways.
const HANDS: [&str; 7] = ["removed by hand", "killed by hand", "started by hand", "shim killed", "paused by hand", "frozen", "vanished"];

/// Something that must never be.
#[derive(Debug, Clone, Serialize)]
pub struct Violation {
    pub promise: &'static str,
    pub agent: Option<Uuid>,
    pub detail: String,
}

/// What a run showed.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub seed: u64,
    pub seconds: f64,
    /// Share of the time in which every part answered.
    pub healthy: f64,
    pub agents: usize,
    pub containers: usize,
    /// By name: how often, and how often it reached the moment it waited for.
    pub faults: BTreeMap<String, (usize, usize)>,
    /// By state and reason.
    pub ends: BTreeMap<String, usize>,
    /// Milliseconds from the deadline and its grace to the death of the last process, of all that were ended: median, 99th, worst.
    pub lateness: (Millis, Millis, Millis),
    /// The same, in healthy time.
    pub healthy_lateness: (Millis, Millis, Millis),
    /// By fault that was there meanwhile: the worst, in healthy time.
    pub worst: BTreeMap<String, Millis>,
    /// From the death of a replica to the next step of a start that it held, in healthy time.
    pub take_over: (Millis, Millis, Millis),
    /// Milliseconds, healthy: the longest that a container outlived its agent's end.
    pub orphan: Millis,
    /// From the submission to the start, in healthy time.
    pub start: (Millis, Millis, Millis),
    /// From the death of an agent that ended by itself to its record, in healthy time.
    pub recorded: (Millis, Millis, Millis),
    /// The most that lived at one time.
    pub most_alive: usize,
    /// Of those that were ended: how many were held against their deadlines, and all.
    pub judged: (usize, usize),
    /// Milliseconds: the longest that a client waited for an answer.
    pub slowest_answer: Millis,
    pub violations: Vec<Violation>,
}

/// The instants at which there was no excuse.
struct Health {
    /// End of each interval, and the healthy milliseconds up to it.
    sums: Vec<(Millis, Millis)>,
    /// Start and end of each healthy interval.
    good: Vec<(Millis, Millis)>,
}

impl Health {
    fn new(probes: &[Probe], faults: &[Injected]) -> Self {
        let paralysed: Vec<(Millis, Millis)> =
            faults.iter().filter(|f| PARALYSIS.contains(&f.fault.as_str())).map(|f| (f.began, f.ended + 1000)).collect();
        let mut good = Vec::new();
        for pair in probes.windows(2) {
            let [a, b] = pair else { continue };
            let excused = paralysed.iter().any(|(began, ended)| *began < b.at && a.at < *ended);
            if a.healthy() && b.healthy() && b.at - a.at < 2000 && !excused {
                good.push((a.at, b.at));
            }
        }
        let mut sum = 0;
        let sums = good
            .iter()
            .map(|(from, to)| {
                sum += to - from;
                (*to, sum)
            })
            .collect();
        Self { sums, good }
    }

    /// Healthy milliseconds before an instant.
    fn until(&self, at: Millis) -> Millis {
        let index = self.sums.partition_point(|(end, _)| *end <= at);
        let before = if index == 0 { 0 } else { self.sums[index - 1].1 };
        let partly = self.good.get(index).map_or(0, |(from, _)| (at - from).max(0));
        before + partly
    }

    fn between(&self, from: Millis, to: Millis) -> Millis {
        if to <= from { 0 } else { self.until(to) - self.until(from) }
    }
}

/// What was seen of one agent's containers.
#[derive(Default)]
struct Seen {
    born: Vec<(Millis, String)>,
    last_alive: Option<Millis>,
    dead: Option<Millis>,
    kept: bool,
    forgotten: Option<Millis>,
}

/// Judges a run.
pub fn check(dir: &Dir) -> Report {
    let plan: Plan = dir.load("plan.json");
    let course: Course = dir.load("course.json");
    let calls: Vec<Call> = dir.read("calls.jsonl");
    let faults: Vec<Injected> = dir.read("faults.jsonl");
    let probes: Vec<Probe> = dir.read("probes.jsonl");
    let beats: Vec<Beat> = dir.read("beats.jsonl");
    let mut events: Vec<Event> = dir.read("events.jsonl");
    let mut rows: Vec<Row> = dir.read("rows.jsonl");

    // Onto our clock.
    let mut offsets: Vec<Millis> = probes.iter().filter_map(|probe| probe.offset).collect();
    offsets.sort_unstable();
    let offset = offsets.get(offsets.len() / 2).copied().unwrap_or_default();
    for event in &mut events {
        event.at -= offset;
        event.expires_at = event.expires_at.map(|at| at - offset);
    }
    for row in &mut rows {
        for at in [&mut row.expires_at, &mut row.decided_at, &mut row.finished_at].into_iter().flatten() {
            *at -= offset;
        }
    }

    let health = Health::new(&probes, &faults);
    let mut seen: HashMap<Uuid, Seen> = HashMap::new();
    for beat in &beats {
        let life = seen.entry(beat.agent).or_default();
        match beat.what {
            Sign::Born => life.born.push((beat.at, beat.container.clone())),
            Sign::Alive => life.last_alive = life.last_alive.max(Some(beat.at)),
            Sign::Dead => life.dead = life.dead.max(Some(beat.at)),
            Sign::Kept => (life.kept, life.forgotten) = (true, None),
            Sign::Forgotten => life.forgotten = Some(beat.at),
        }
    }
    let mut told: HashMap<Uuid, Vec<&Event>> = HashMap::new();
    for event in &events {
        told.entry(event.id).or_default().push(event);
    }
    let by_id: HashMap<Uuid, &Row> = rows.iter().map(|row| (row.id, row)).collect();

    let mut report = Report {
        seed: plan.seed,
        #[expect(clippy::cast_precision_loss, reason = "a share, for people")]
        seconds: (course.ended - course.began) as f64 / 1000.0,
        #[expect(clippy::cast_precision_loss, reason = "a share, for people")]
        healthy: health.between(course.began, course.ended) as f64 / (course.ended - course.began).max(1) as f64,
        agents: rows.len(),
        containers: rows.iter().filter(|row| seen.get(&row.id).is_some_and(|life| !life.born.is_empty())).count(),
        ..Report::default()
    };
    for fault in &faults {
        let count = report.faults.entry(fault.fault.clone()).or_default();
        *count = (count.0 + 1, count.1 + usize::from(fault.fired));
    }
    let mut judge = Judge {
        plan: &plan,
        course: &course,
        faults: &faults,
        health: &health,
        report,
        times: Times::default(),
        busy: Busy::new(&rows, &events),
    };
    judge.clients(&calls, &by_id, &told, &seen, &probes);
    let none = Seen::default();
    for row in &rows {
        judge.agent(row, told.get(&row.id).map_or(&[][..], Vec::as_slice), seen.get(&row.id).unwrap_or(&none));
    }
    judge.one_for_each_key(&rows);
    judge.nobodys(&by_id, &seen);
    judge.capacity(rows.iter().filter_map(|row| seen.get(&row.id)));
    judge.take_overs(&dir.read::<TakenOver>("taken.jsonl"));
    if course.before != course.after {
        judge.violated("S9", None, format!("foreign containers were touched: {:?}, then {:?}", course.before, course.after));
    }
    if course.slots != 0 {
        judge.violated("L7", None, format!("{} slots are held by nobody", course.slots));
    }
    let Times { mut late, mut healthy, mut start, mut recorded } = judge.times;
    judge.report.lateness = spread(&mut late);
    judge.report.healthy_lateness = spread(&mut healthy);
    judge.report.start = spread(&mut start);
    judge.report.recorded = spread(&mut recorded);
    judge.report
}

/// What is measured, in milliseconds.
#[derive(Default)]
struct Times {
    late: Vec<Millis>,
    healthy: Vec<Millis>,
    start: Vec<Millis>,
    recorded: Vec<Millis>,
}

/// When the daemon was asked for something that takes its time: whoever comes in the same moments waits in line.
struct Busy {
    ends: Vec<Millis>,
    starts: Vec<Millis>,
}

impl Busy {
    fn new(rows: &[Row], events: &[Event]) -> Self {
        let mut ends: Vec<Millis> = rows.iter().filter_map(|row| due(row).or(row.finished_at)).collect();
        let mut starts: Vec<Millis> = events.iter().filter(|event| event.state == "pending").map(|event| event.at).collect();
        ends.sort_unstable();
        starts.sort_unstable();
        Self { ends, starts }
    }

    fn between(sorted: &[Millis], from: Millis, to: Millis) -> i64 {
        let count = sorted.partition_point(|at| *at < to).saturating_sub(sorted.partition_point(|at| *at <= from));
        i64::try_from(count).unwrap()
    }
}

struct Judge<'a> {
    plan: &'a Plan,
    course: &'a Course,
    faults: &'a [Injected],
    health: &'a Health,
    report: Report,
    times: Times,
    busy: Busy,
}

impl Judge<'_> {
    fn violated(&mut self, promise: &'static str, agent: Option<Uuid>, detail: String) {
        self.report.violations.push(Violation { promise, agent, detail });
    }

    fn touched(&self, agent: Uuid, by: &[&str]) -> bool {
        self.faults.iter().any(|f| f.touched.contains(&agent) && by.contains(&f.fault.as_str()))
    }

    /// Whether an agent may be late between two instants: hands were laid on it, the weather met it, or its row was locked meanwhile.
    fn excused(&self, agent: Uuid, from: Millis, to: Millis) -> bool {
        self.touched(agent, &HANDS)
            || self.faults.iter().any(|f| f.touched.contains(&agent) && (f.fault == "weather" || (f.began <= to && f.ended >= from)))
    }

    /// S1, S2, S13, L11, and that what was rolled back never was.
    fn clients(
        &mut self,
        calls: &[Call],
        rows: &HashMap<Uuid, &Row>,
        told: &HashMap<Uuid, Vec<&Event>>,
        seen: &HashMap<Uuid, Seen>,
        probes: &[Probe],
    ) {
        let mut keys: BTreeMap<&str, BTreeSet<Uuid>> = BTreeMap::new();
        for call in calls {
            self.report.slowest_answer = self.report.slowest_answer.max(call.ended - call.began);
            let promised = call.said == Said::Ok;
            // Whatever is asked for here may be asked for: but for an extension that comes too late.
            if call.status == 500 || (call.said == Said::Fail && !(call.op == Op::Patch && call.status == 409)) {
                self.violated("S1", call.agent, format!("refused, or answered with a defect: {call:?}"));
            }
            let Some(agent) = call.agent else { continue };
            match call.op {
                Op::Post | Op::Submit if promised => {
                    if !rows.contains_key(&agent) {
                        self.violated("S1", Some(agent), format!("an acknowledged submit is lost: {call:?}"));
                    }
                    keys.entry(&call.key).or_default().insert(agent);
                }
                Op::Rollback if promised && (rows.contains_key(&agent) || seen.contains_key(&agent)) => {
                    self.violated("S1", Some(agent), "what was rolled back is there".to_owned());
                }
                Op::Delete if promised => {
                    let stands = told.get(&agent).into_iter().flatten().any(|event| {
                        event.at <= call.ended + BLUR && matches!(event.state.as_str(), "terminating" | "succeeded" | "failed" | "expired")
                    });
                    if !stands && !self.touched(agent, &HANDS) {
                        self.violated("S13", Some(agent), format!("an acknowledged DELETE is lost: {call:?}"));
                    }
                }
                Op::Patch if promised => {
                    let died = seen.get(&agent).and_then(|life| life.dead);
                    let excused = self.touched(agent, &HANDS);
                    if let (Some(deadline), Some(died)) = (call.deadline, died)
                        && died + BLUR < deadline
                        && !excused
                    {
                        self.violated("S7", Some(agent), format!("killed {} ms before the deadline that was promised", deadline - died));
                    }
                }
                _ => {}
            }
            let (from, to) = (call.began - 1500, call.ended + 1500);
            let near = &probes[probes.partition_point(|probe| probe.at < from)..probes.partition_point(|probe| probe.at <= to)];
            // With no connection to be had the probe has none either, while replicas have theirs.
            let crowded = self.faults.iter().any(|f| f.fault == "connections exhausted" && f.began <= to && f.ended >= from);
            let (up, all) = near.iter().fold((0, 0), |(up, all), probe| (up + usize::from(probe.postgres), all + 1));
            if promised && all >= 3 && up == 0 && !crowded {
                self.violated("L11", Some(agent), format!("promised while Postgres was away: {call:?}"));
            }
        }
        for (key, agents) in keys {
            if agents.len() > 1 {
                self.violated("S2", None, format!("key {key} named {agents:?}"));
            }
        }
    }

    fn agent(&mut self, row: &Row, events: &[&Event], life: &Seen) {
        let ended = self.transitions(row, events);
        let end = format!("{} {}", row.state, row.reason.as_deref().unwrap_or("-"));
        *self.report.ends.entry(end).or_default() += 1;
        self.executions(row, life);
        self.honesty(row, events, life);
        if let Some(ended) = ended {
            if let Some(alive) = life.last_alive.filter(|alive| *alive > ended + BLUR)
                && !self.touched(row.id, &["started by hand"])
            {
                self.violated("S12", Some(row.id), format!("alive {} ms after its end was recorded", alive - ended));
            }
            if life.kept {
                let until = life.forgotten.unwrap_or(self.course.ended);
                let orphan = self.health.between(ended, until);
                self.report.orphan = self.report.orphan.max(orphan);
                if orphan > 30_000 {
                    self.violated("L5", Some(row.id), format!("its container was there {orphan} ms after its end"));
                }
            }
        }
        self.on_time(row, life);
        self.taken_up(row, events, life, ended);
    }

    /// S3, S4, S10, L1: answers when the end was recorded.
    fn transitions(&mut self, row: &Row, events: &[&Event]) -> Option<Millis> {
        let terminal = |state: &str| matches!(state, "succeeded" | "failed" | "expired");
        let states: Vec<&&Event> = events.iter().filter(|event| event.kind == "state").collect();
        let mut was: Option<&str> = None;
        let mut epoch = 0;
        for event in &states {
            let legal = matches!(
                (was, event.state.as_str()),
                (None, "pending")
                    | (Some("pending"), "running" | "failed" | "terminating")
                    | (Some("running"), "terminating" | "succeeded" | "failed")
                    | (Some("terminating"), "expired" | "succeeded" | "failed")
            );
            if !legal || event.was.as_deref() != was {
                self.violated("S3", Some(row.id), format!("{was:?} became {} (it says from {:?})", event.state, event.was));
            }
            if event.epoch < epoch {
                self.violated("S10", Some(row.id), format!("the epoch fell from {epoch} to {}", event.epoch));
            }
            epoch = event.epoch;
            was = Some(&event.state);
        }
        let ends: Vec<&&&Event> = states.iter().filter(|event| terminal(&event.state)).collect();
        if ends.len() > 1 {
            self.violated("S4", Some(row.id), format!("it ended {} times", ends.len()));
        }
        if row.state == "lost" {
            self.violated("S1", Some(row.id), "it is neither alive nor has it ended".to_owned());
        } else if !terminal(&row.state) {
            self.violated("L1", Some(row.id), format!("still {} when the run ended", row.state));
        } else if was != Some(&row.state) {
            self.violated("S4", Some(row.id), format!("it is {}, its last event says {was:?}", row.state));
        }
        ends.first().map(|event| event.at)
    }

    /// S5, S6.
    fn executions(&mut self, row: &Row, life: &Seen) {
        if self.touched(row.id, &["started by hand"]) {
            return;
        }
        if life.born.len() > 1 {
            self.violated("S6", Some(row.id), format!("started {} times: {:?}", life.born.len(), life.born));
        }
        if row.begun.is_some_and(|begun| begun > 1) {
            self.violated("S6", Some(row.id), format!("its output says {:?} times that it began", row.begun));
        }
    }

    /// S7, S8, S11.
    fn honesty(&mut self, row: &Row, events: &[&Event], life: &Seen) {
        let hands = self.touched(row.id, &HANDS);
        let decided = events.iter().find(|event| event.state == "terminating").map(|event| event.at);
        if let Some(died) = life.dead
            && row.kind.endless()
            && !hands
            // Never known to run: a daemon that ends in the middle of a start may take it along.
            && events.iter().any(|event| event.state == "running")
            && decided.is_none_or(|decided| died + BLUR < decided)
        {
            self.violated("S8", Some(row.id), format!("died at {died}, decided on at {decided:?}"));
        }
        if row.reason.as_deref() == Some("ttl_expired")
            && let (Some(decided), Some(deadline)) = (row.decided_at, row.expires_at)
            && decided < deadline
        {
            self.violated("S7", Some(row.id), format!("decided on {} ms before its deadline", deadline - decided));
        }
        if row.reason.as_deref() == Some("ttl_expired")
            && let (Some(died), Some(deadline)) = (life.dead, row.expires_at)
            && died + BLUR < deadline
            && row.exit_code.is_some_and(|code| code > 128)
            && !hands
        {
            self.violated("S7", Some(row.id), format!("dead {} ms before its deadline", deadline - died));
        }
        let submitted = events.iter().map(|event| event.at).min().unwrap_or_default();
        let until = row.finished_at.unwrap_or(self.course.ended);
        let sick = |of: &[&str]| self.faults.iter().any(|f| of.contains(&f.fault.as_str()) && f.began <= until && f.ended >= submitted);
        let (forgetful, failing) = (sick(&OF_MEMORY), sick(&OF_STARTS));
        // It took as long as it may, and not for want of trying.
        let slow = until - submitted >= START_TIMEOUT && (self.health.between(submitted, until) < START_TIMEOUT || failing);
        let honest = match (row.state.as_str(), row.reason.as_deref(), row.kind) {
            ("succeeded", Some("exited"), Kind::Exits(0)) => row.exit_code == Some(0),
            ("failed", Some("exited"), Kind::Exits(code)) if code != 0 && row.exit_code == Some(code) => true,
            // Docker tells of it on a best effort: the code is the same.
            ("failed", Some("oom_killed" | "exited"), Kind::Oom) if row.exit_code == Some(137) => true,
            // A daemon that was away when it ended may not know how: 255, it says.
            ("failed", Some("exited"), _) if row.exit_code == Some(255) => hands || forgetful,
            ("failed", Some("exited" | "vanished"), _) => hands,
            ("failed", Some("start_failed"), _) => failing || hands,
            ("failed", Some("start_timeout"), _) => slow || hands,
            ("expired", Some("ttl_expired"), Kind::Exits(_) | Kind::Oom) => hands,
            ("expired", Some("ttl_expired"), Kind::Deleted) => row.expires_at.is_some_and(|at| row.decided_at >= Some(at)),
            ("expired", Some("terminated"), kind) => kind == Kind::Deleted,
            ("expired", Some("ttl_expired"), _) => true,
            ("pending" | "running" | "terminating", ..) => true,
            _ => false,
        };
        if !honest {
            self.violated("S11", Some(row.id), format!("{:?} ended as {} {:?} with {:?}", row.kind, row.state, row.reason, row.exit_code));
        }
    }

    /// L3, L4.
    fn on_time(&mut self, row: &Row, life: &Seen) {
        let (Some(died), true) = (life.dead, row.state == "expired") else { return };
        let Some(decided) = due(row) else { return };
        self.report.judged.1 += 1;
        if self.excused(row.id, decided, died) {
            return;
        }
        self.report.judged.0 += 1;
        #[expect(clippy::cast_possible_truncation, reason = "a grace of seconds, in milliseconds")]
        let due_at = decided + (row.grace * 1000.0) as Millis;
        let late = (died - due_at).max(0);
        let healthy = self.health.between(due_at, died);
        // SIGKILL's own code.
        if row.exit_code == Some(137) && died + BLUR < due_at {
            self.violated("S7", Some(row.id), format!("killed {} ms before its grace was over", due_at - died));
        }
        self.times.late.push(late);
        self.times.healthy.push(healthy);
        for fault in self.faults.iter().filter(|f| f.began < died && decided < f.ended) {
            let worst = self.report.worst.entry(fault.fault.clone()).or_default();
            *worst = (*worst).max(healthy);
        }
        // Whoever is due in the same moments waits for the same daemon. They are counted about the deadline, not until the death: a bound must
        // not grow with what it bounds.
        let crowd = Busy::between(&self.busy.ends, decided - 2000, decided + 1000);
        // One that is cut off is as good as dead to whom it serves.
        let fell = |f: &Injected| f.struck.or(f.fault.starts_with("cut from").then_some(f.began));
        let replica_died = self.faults.iter().any(|f| fell(f).is_some_and(|at| at > decided - 10_000 && at < died));
        let bound = 2000 + BLUR + crowd * 1000 / self.plan.daemon_rate + if replica_died { 2000 } else { 0 };
        if healthy > bound {
            self.violated(
                "L3",
                Some(row.id),
                format!("died {healthy} ms of healthy time too late ({late} ms in all); {bound} are allowed"),
            );
        }
    }

    /// L1, L2: a wish is taken up, and an end is seen.
    fn taken_up(&mut self, row: &Row, events: &[&Event], life: &Seen, ended: Option<Millis>) {
        let at = |state: &str| events.iter().find(|event| event.kind == "state" && event.state == state).map(|event| event.at);
        let begun = events.iter().find(|event| event.kind == "state" && event.state != "pending").map(|event| event.at);
        if let Some(asked) = at("pending")
            && !self.excused(row.id, asked, begun.unwrap_or(self.course.ended))
        {
            let until = begun.unwrap_or(self.course.ended);
            let took = self.health.between(asked, until);
            self.times.start.push(took);
            let crowd = Busy::between(&self.busy.starts, asked - 10_000, asked + 1000);
            if took > TAKEN_UP + crowd * 1000 / self.plan.daemon_rate {
                self.violated("L2", Some(row.id), format!("waited {took} ms of healthy time for its start, beside {crowd} others"));
            }
        }
        if let Some(died) = life.dead
            && at("terminating").is_none_or(|decided| decided > died + BLUR)
        {
            let until = at("terminating").or(ended).unwrap_or(self.course.ended);
            if self.excused(row.id, died, until) {
                return;
            }
            let took = self.health.between(died, until);
            self.times.recorded.push(took);
            let crowd = Busy::between(&self.busy.ends, died - 2000, died + 1000);
            if took > TAKEN_UP + crowd * 1000 / self.plan.daemon_rate {
                self.violated("L1", Some(row.id), format!("nobody saw that it had ended for {took} ms of healthy time"));
            }
        }
    }

    /// S2, also for what a client never heard of.
    fn one_for_each_key(&mut self, rows: &[Row]) {
        let mut keys: HashMap<&str, Vec<Uuid>> = HashMap::new();
        for row in rows {
            keys.entry(row.key.as_deref().unwrap_or_default()).or_default().push(row.id);
        }
        for (key, agents) in keys.into_iter().filter(|(_, agents)| agents.len() > 1) {
            self.violated("S2", None, format!("{} agents were submitted under the key {key}: {agents:?}", agents.len()));
        }
    }

    /// S1, L7: nothing lives, or is left, that nobody asked for.
    fn nobodys(&mut self, rows: &HashMap<Uuid, &Row>, seen: &HashMap<Uuid, Seen>) {
        for (agent, life) in seen {
            let decoy = self.course.before.iter().any(|decoy| decoy.name.ends_with(&agent.to_string()));
            if !decoy && !life.born.is_empty() && !rows.contains_key(agent) {
                self.violated("S1", Some(*agent), "a container ran, and nobody knows of its agent".to_owned());
            }
        }
        if self.course.left > 1 {
            self.violated("L7", None, format!("{} containers are left", self.course.left - 1));
        }
    }

    /// S17.
    fn capacity<'a>(&mut self, lives: impl Iterator<Item = &'a Seen>) {
        let mut steps: Vec<(Millis, i32)> = Vec::new();
        for life in lives {
            let until = life.dead.or(life.last_alive);
            if let (Some((born, _)), Some(until)) = (life.born.first(), until) {
                steps.extend([(*born, 1), (until - BLUR, -1)]);
            }
        }
        steps.sort_unstable();
        let mut alive = 0;
        for (_, step) in steps {
            alive += step;
            self.report.most_alive = self.report.most_alive.max(usize::try_from(alive).unwrap_or_default());
        }
        if self.report.most_alive > self.plan.capacity {
            let detail = format!("{} lived on a host that may carry {}", self.report.most_alive, self.plan.capacity);
            self.violated("S17", None, detail);
        }
    }

    /// L6.
    fn take_overs(&mut self, taken: &[TakenOver]) {
        let mut all = Vec::new();
        for one in taken {
            let took = self.health.between(one.struck, one.until);
            all.push(took);
            if took > self.plan.lease + 2000 + BLUR && !self.excused(one.agent, one.struck, one.until) {
                let detail = format!("taken over: {}, {took} ms of healthy time after its replica fell", one.taken);
                self.violated("L6", Some(one.agent), detail);
            }
        }
        self.report.take_over = spread(&mut all);
    }
}

/// The instant that an end is counted from: its deadline, or the wish to end it. `None`: it never was on a host, or ended by itself.
fn due(row: &Row) -> Option<Millis> {
    match row.reason.as_deref()? {
        "ttl_expired" => row.expires_at,
        "terminated" => row.decided_at,
        _ => None,
    }
}

/// Median, 99th percentile, worst.
fn spread(values: &mut [Millis]) -> (Millis, Millis, Millis) {
    values.sort_unstable();
    let at = |share: usize| values.get((values.len() * share / 100).min(values.len().saturating_sub(1))).copied().unwrap_or_default();
    (at(50), at(99), at(100))
}
