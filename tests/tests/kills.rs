//! A machine whose process is killed at random instants while it is saved, forked, cloned and tidied up, with a guest that notices:
//! every snapshot stays what it was, byte by byte, and the machine starts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use orangery_tests::crash::{Act, Plan, Stage, State, look, stride};
use orangery_tests::kvm::Kvm;
use orangery_tests::report;
use serde_json::Value;

/// How often the process is killed; a thousand times takes most of an hour.
const KILLS: &str = "ORANGERY_KILLS";
const FEW: u64 = 8;
/// How long anything may take before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(120);
/// Snapshots that are kept at a time.
const KEPT: usize = 4;

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verb {
    Take,
    Delete,
    Suspend,
    Fork,
    /// Of a snapshot, while the machine runs.
    CloneSnapshot,
    /// Of what the machine is, while it is off.
    ClonePresent,
    /// A checkpoint is taken by itself, and others are too many then.
    Timeline,
    /// It runs without saving.
    Unsaved,
}

impl Verb {
    /// Who is killed: the process that was started for it, or the machine's.
    fn is_done_by_its_own_process(self) -> bool {
        matches!(self, Verb::CloneSnapshot | Verb::ClonePresent | Verb::Unsaved)
    }

    /// Only a machine that is off does it.
    fn is_of_a_machine_that_is_off(self) -> bool {
        matches!(self, Verb::ClonePresent | Verb::Unsaved)
    }
}

/// What may have changed where something was interrupted.
enum Touched {
    /// Nothing that is kept.
    Nothing,
    /// This snapshot: it may be there or not.
    Snapshot(String),
    /// The timeline may have one more checkpoint, and lack all but these.
    Timeline(Vec<String>),
}

struct Bench {
    stage: Stage,
    dice: Dice,
    /// How long each took the last time that it was not interrupted.
    took: BTreeMap<Verb, Duration>,
    /// What was done last.
    history: Vec<String>,
    /// How often it was killed before each was done, and after.
    killed: BTreeMap<Verb, (u64, u64)>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for name in ["a", "b"] {
            let _ = self.stage.run(&["stop", name, "--force"]);
        }
    }
}

impl Bench {
    fn show(&self, name: &str) -> Value {
        serde_json::from_str(&self.stage.ok(&["show", name, "--json"]).unwrap()).unwrap()
    }

    fn snapshots(&self) -> Vec<String> {
        let listed = self.stage.ok(&["snapshot", "list", "a", "--json"]).unwrap();
        let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
        listed.iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_string()).collect()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.stage.folder.join(name).join("logs/serial.log")
    }

    /// Waits until the guest has found all right once more since it was started.
    fn wait_for_round(&self, name: &str) {
        self.wait_for_rounds(name, 1);
    }

    /// The same for so many times.
    fn wait_for_rounds(&self, name: &str, times: usize) {
        let until = Instant::now() + PATIENCE;
        loop {
            let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
            // With all that the guest says of it.
            let failed = log.find("FAIL").is_some_and(|at| log[at..].contains('\n'));
            assert!(!failed, "{name}: {log}; {:#?}", self.history);
            if log.matches(" holds").count() >= times {
                return;
            }
            assert!(Instant::now() < until, "{name} does not go on: {}", self.show(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// If it runs, its guest goes on and finds nothing wrong. A write of the guest's for which there was no room is made again.
    fn runs_on(&self, name: &str) {
        let rounds = || std::fs::read_to_string(self.log(name)).unwrap_or_default().matches(" holds").count();
        let (first, until) = (rounds(), Instant::now() + PATIENCE);
        while rounds() <= first {
            match self.show(name)["state"].as_str() {
                Some("stopped" | "suspended") => return,
                // It may have gone on, or ended, meanwhile.
                Some("paused") => drop(self.stage.run(&["resume", name]).unwrap()),
                _ => {}
            }
            assert!(Instant::now() < until, "{name} does not go on: {}", self.show(name));
            std::thread::sleep(Duration::from_millis(20));
        }
        self.wait_for_round(name);
    }

    fn start(&self, name: &str) {
        self.stage.ok(&["start", name, "--headless"]).unwrap();
        self.wait_for_round(name);
    }

    /// Kills the process that runs a machine, if one does, and waits for its end.
    fn kill(&self, name: &str) {
        let until = Instant::now() + PATIENCE;
        let mut pid = self.show(name)["running"]["pid"].as_i64();
        loop {
            if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
                // SAFETY: kill touches no memory.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            let shown = self.show(name);
            if matches!(shown["state"].as_str(), Some("stopped" | "suspended")) {
                return;
            }
            // It may have been on its way up, and say now who it is.
            pid = shown["running"]["pid"].as_i64();
            assert!(Instant::now() < until, "{name} does not end: {shown}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The ids of its timeline's checkpoints, the oldest first.
    fn timeline(&self) -> Vec<String> {
        let listed = self.stage.ok(&["timeline", "list", "a", "--json"]).unwrap();
        let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
        listed.iter().map(|point| point["id"].as_str().unwrap().to_string()).collect()
    }

    /// Makes the checkpoints of the timeline of one hour long ago, but for the last, which is of tomorrow: the next is due, and
    /// too many are there then. Returns those that stay.
    fn age(&self) -> Vec<String> {
        let ids = self.timeline();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        for (number, id) in ids.iter().enumerate() {
            let then =
                if number + 1 == ids.len() { now + 86_400 } else { now / 3600 * 3600 - 3 * 3600 + number as u64 };
            let told = Command::new("date").args(["-u", "-d", &format!("@{then}"), "+%FT%TZ"]).output().unwrap();
            let file = self.stage.folder.join("a/checkpoints").join(id).join("about.json");
            let mut about: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            about["created"] = String::from_utf8(told.stdout).unwrap().trim().into();
            std::fs::write(&file, serde_json::to_vec(&about).unwrap()).unwrap();
        }
        [ids.first(), ids.last()].into_iter().flatten().cloned().collect()
    }

    /// How often the machine has said that its timeline has another checkpoint.
    fn checkpoints_told(&self) -> usize {
        let log = std::fs::read_to_string(self.stage.folder.join("a/logs/orangery.log")).unwrap_or_default();
        log.matches("A checkpoint for the timeline").count()
    }

    /// Does something to the machine and kills who does it meanwhile, and the machine. Returns what may have changed.
    fn interrupt(&mut self, verb: Verb, number: u64) -> Touched {
        let names = self.snapshots();
        let (new, old) = (format!("s{number}"), names.get(self.dice.below(KEPT as u64) as usize).or(names.first()));
        let mut clone = vec!["clone", "a", "b"];
        clone.extend((self.dice.below(2) == 0).then_some("--linked"));
        let (args, touched) = match (verb, old) {
            (Verb::Delete, Some(old)) => (vec!["snapshot", "delete", "a", old], Touched::Snapshot(old.clone())),
            (Verb::CloneSnapshot, Some(old)) => ([&clone[..], &["--of", old]].concat(), Touched::Nothing),
            (Verb::ClonePresent, _) => (clone, Touched::Nothing),
            (Verb::Suspend, _) => (vec!["suspend", "a"], Touched::Nothing),
            (Verb::Fork, _) => (vec!["fork", "a", "b"], Touched::Nothing),
            (Verb::Timeline, _) => (vec!["timeline", "on", "a", "--every", "1440"], Touched::Timeline(self.age())),
            (Verb::Unsaved, _) => (vec!["run", "a", "--headless", "--without-saving"], Touched::Nothing),
            (Verb::Take | Verb::Delete | Verb::CloneSnapshot, _) => {
                (vec!["snapshot", "take", "a", &new], Touched::Snapshot(new.clone()))
            }
        };
        self.history.push(format!("{args:?}"));
        if verb.is_of_a_machine_that_is_off() {
            if self.dice.below(2) == 0 {
                self.stage.ok(&["suspend", "a"]).unwrap();
                self.history.push("suspended".into());
            }
            self.kill("a");
        }
        let still = verb.is_of_a_machine_that_is_off().then(|| look(&self.stage.folder).unwrap());
        let machine = self.show("a")["running"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        assert_eq!(machine.is_none(), verb.is_of_a_machine_that_is_off(), "{:?}", self.history);
        let told = self.checkpoints_told();
        let longest = match verb {
            // It ends when it is killed.
            Verb::Unsaved => Duration::from_secs(1),
            _ => self.took.get(&verb).copied().unwrap_or(Duration::from_millis(100)).max(Duration::from_millis(10)),
        };
        // What follows a checkpoint of the timeline is done after it is told.
        let beyond = if verb == Verb::Timeline { 20 } else { 11 };
        let delay = Duration::from_micros(self.dice.below(longest.as_micros() as u64 * beyond / 10));
        let began = Instant::now();
        let mut command = self.stage.command(&args).unwrap();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (mut ended, mut done) = (false, None);
        while began.elapsed() < delay {
            ended = ended || child.try_wait().unwrap().is_some();
            let is_done = if verb == Verb::Timeline { self.checkpoints_told() > told } else { ended };
            if done.is_none() && is_done {
                done = Some(began.elapsed());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        match machine.filter(|_| !verb.is_done_by_its_own_process()) {
            // SAFETY: kill touches no memory. A process that has ended by itself was not waited for by its parent, init, long
            // enough ago for another to have its number.
            Some(pid) => drop(unsafe { libc::kill(pid, libc::SIGKILL) }),
            None => child.kill().unwrap(),
        }
        child.wait().unwrap();
        // As long as it took, or more than it was given.
        self.took.insert(verb, done.unwrap_or(longest.mul_f64(1.5)).min(Duration::from_secs(6)));
        self.history.push(format!("killed after {delay:?}, done {done:?}"));
        let killed = self.killed.entry(verb).or_default();
        match done {
            Some(_) => killed.1 += 1,
            None => killed.0 += 1,
        }
        self.kill("a");
        if let Some(still) = still {
            let now = look(&self.stage.folder).unwrap();
            for (fact, value) in still.facts.iter().filter(|(fact, _)| fact.starts_with("a: ")) {
                assert_eq!(now.facts.get(fact), Some(value), "{fact}: {:?}", self.history);
            }
        }
        touched
    }

    /// What is there is whole, and every snapshot but that which was being changed is what it was.
    fn compare(&self, before: &State, touched: &Touched) -> State {
        let after = look(&self.stage.folder).unwrap();
        let about = |fact: &str, name: &str| fact.starts_with(&format!("a: snapshot {name:?}"));
        for (fact, value) in before.facts.iter().filter(|(fact, _)| fact.starts_with("a: snapshot ")) {
            if matches!(touched, Touched::Snapshot(name) if about(fact, name)) {
                assert!(after.facts.get(fact).is_none_or(|now| now == value), "{fact}: {after:?}");
            } else {
                assert_eq!(after.facts.get(fact), Some(value), "{fact}");
            }
        }
        // They are called by what they hold: one that was changed is a new one.
        let points = |state: &State| -> BTreeSet<String> {
            state.facts.keys().filter_map(|fact| Some(fact.strip_prefix("a: timeline ")?.get(..8)?.into())).collect()
        };
        let (old, new) = (points(before), points(&after));
        match touched {
            Touched::Timeline(stay) => {
                let left = self.timeline();
                assert!(stay.iter().all(|id| left.contains(id)), "{stay:?} are not all in {left:?}");
                assert!(new.difference(&old).count() <= 1, "{new:?} was {old:?}; {:?}", self.history);
            }
            Touched::Nothing | Touched::Snapshot(_) => assert_eq!(new, old, "{:?}", self.history),
        }
        after
    }
}

fn bench() -> Bench {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    eprintln!("seed {seed}");
    let stage = Stage::new().unwrap();
    let kernel = stage.folder.parent().unwrap().join("probe.elf");
    std::fs::write(&kernel, orangery_assets::PROBE_ELF).unwrap();
    let (kernel, words) = (kernel.to_str().unwrap(), "then=watch watchmib=1");
    let machine = ["create", "a", "--memory", "64", "--cpus", "1", "--new-disk", "1M"];
    stage.ok(&[&machine[..], &["--kernel", kernel, "--cmdline", words]].concat()).unwrap();
    let (took, killed) = (BTreeMap::new(), BTreeMap::new());
    Bench { stage, dice: Dice(seed), took, killed, history: Vec::new() }
}

#[test]
fn a_machine_that_is_killed_at_any_instant_keeps_its_snapshots_and_starts() {
    let test = "a_machine_that_is_killed_at_any_instant_keeps_its_snapshots_and_starts";
    if Kvm::detect() == Kvm::None {
        return report::skip(2, test, "there is no usable /dev/kvm");
    }
    let kills = std::env::var(KILLS).map_or(FEW, |text| text.parse().unwrap());
    let mut bench = bench();
    let mut before = look(&bench.stage.folder).unwrap();
    bench.start("a");
    for number in 0..kills {
        let verb = match (bench.snapshots().len(), number % 10) {
            (_, 2) => Verb::Suspend,
            (_, 3) => Verb::Fork,
            (1.., 4) => Verb::CloneSnapshot,
            (_, 5) => Verb::ClonePresent,
            (_, 6) => Verb::Timeline,
            (_, 7) => Verb::Unsaved,
            (KEPT.., _) | (2.., 1) => Verb::Delete,
            _ => Verb::Take,
        };
        let touched = bench.interrupt(verb, number);
        if bench.stage.folder.join("b").exists() {
            // Whether it runs already, or was made only: it can be used, and be thrown away.
            bench.kill("b");
            // Neither writes to what the other has.
            look(&bench.stage.folder).unwrap();
            let log = std::fs::read_to_string(bench.log("b")).unwrap_or_default();
            assert!(!log.contains("FAIL"), "b: {log}");
            bench.start("b");
            bench.kill("b");
            look(&bench.stage.folder).unwrap();
            bench.stage.ok(&["delete", "b"]).unwrap();
            bench.stage.ok(&["trash", "--empty"]).unwrap();
        }
        before = bench.compare(&before, &touched);
        if verb == Verb::Timeline {
            // The next start would take one by itself where there is none.
            bench.stage.ok(&["timeline", "off", "a"]).unwrap();
        }
        let all = [bench.snapshots(), bench.timeline()].concat();
        if number % 5 == 4
            && let Some(name) = all.get(bench.dice.below(all.len().max(1) as u64) as usize)
        {
            // The guest sees that its memory and its disk are of one moment.
            bench.history.push(format!("back to {name}"));
            bench.stage.ok(&["snapshot", "restore", "a", name]).unwrap();
        }
        let power = bench.show("a")["state"].clone();
        bench.history.push(format!("start of what is {power}"));
        bench.start("a");
        let old = bench.history.len().saturating_sub(40);
        bench.history.drain(..old);
        if number % 50 == 49 {
            eprintln!("{} kills, all well: {:?}", number + 1, bench.killed);
        }
    }
    let killed: u64 = bench.killed.values().map(|(before, after)| before + after).sum();
    assert_eq!(killed, kills);
    eprintln!("killed (before the end of it, after): {:?}", bench.killed);
}

/// What a process that runs a machine does first of what is asked of it.
const FIRST: &[&str] = &["orangery-part", "/checkpoints", ".machine.toml"];

/// Has `a` run in `bench` under a tracer, does `verb` to it, and ends it. Returns how many calls there were, what the verb said,
/// and whether the call came that was asked for.
fn traced(bench: &Bench, verb: &[&str], at: Option<(usize, Act)>) -> (usize, std::process::Output, bool) {
    // What an earlier process said.
    let _ = std::fs::remove_file(bench.log("a"));
    std::thread::scope(|scope| {
        let plan = Plan { at, uring: false, from: FIRST };
        let run = scope.spawn(move || bench.stage.traced(&["run", "a", "--headless"], plan).unwrap());
        bench.wait_for_round("a");
        let output = bench.stage.run(verb).unwrap();
        if matches!(at, Some((_, Act::Fail(_)))) {
            bench.runs_on("a");
        }
        bench.kill("a");
        let outcome = run.join().unwrap();
        (outcome.calls.len(), output, outcome.reached)
    })
}

#[test]
fn a_running_machine_is_interrupted_at_any_call_and_loses_nothing() {
    let test = "a_running_machine_is_interrupted_at_any_call_and_loses_nothing";
    if Kvm::detect() == Kvm::None {
        return report::skip(2, test, "there is no usable /dev/kvm");
    }
    let first = bench();
    for name in ["s1", "s2"] {
        first.start("a");
        first.stage.ok(&["snapshot", "take", "a", name]).unwrap();
        first.kill("a");
    }
    let before = look(&first.stage.folder).unwrap();
    let stride = stride();
    let mut dice = Dice(first.dice.0);
    let verbs: [(&[&str], Touched); 3] = [
        (&["suspend", "a"], Touched::Nothing),
        (&["snapshot", "take", "a", "s3"], Touched::Nothing),
        (&["snapshot", "delete", "a", "s1"], Touched::Snapshot("s1".into())),
    ];
    for (verb, touched) in verbs {
        let again = || Bench {
            stage: first.stage.copy().unwrap(),
            dice: Dice(1),
            took: BTreeMap::new(),
            killed: BTreeMap::new(),
            history: Vec::new(),
        };
        let (calls, output, _) = traced(&again(), verb, None);
        assert!(output.status.success() && calls > 5, "{verb:?}: {calls} calls, {output:?}");
        let mut done = 0;
        // An I/O error could be the guest's, which would tell of it.
        for act in [Act::Kill, Act::Fail(libc::ENOSPC)] {
            let one = dice.below(calls as u64) as usize;
            let few = if act == Act::Kill || matches!(touched, Touched::Snapshot(_)) { one..one + 1 } else { 0..0 };
            for at in stride.map_or(few, |_| 0..calls).step_by(stride.unwrap_or(1)) {
                let mut bench = again();
                bench.history.push(format!("{verb:?}, {act:?} before call {at} of {calls}"));
                let (_, output, reached) = traced(&bench, verb, Some((at, act)));
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                bench.history.push(said.clone());
                assert!(output.status.success() || said.len() > 20, "{:?}", bench.history);
                assert!(!said.contains("panicked"), "{:?}", bench.history);
                if stride.is_some() {
                    eprintln!("{:?}", bench.history);
                }
                bench.compare(&before, &touched);
                bench.start("a");
                bench.kill("a");
                done += usize::from(reached);
            }
        }
        eprintln!("{verb:?}: {calls} calls; interrupted {done} times");
    }
}
