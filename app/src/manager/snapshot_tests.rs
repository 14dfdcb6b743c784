//! The snapshots of a machine, and jobs, in the manager's window.

use egui::Vec2;
use egui::accesskit::Role;
use egui::{Key, Modifiers};
use egui_kittest::kittest::Queryable;

use super::super::action::{Action, Named, Power, Request, Update, Watch};
use super::super::model::{Failure, Snapshot, Snapshots, State};
use super::{CTRL, Stage, machine, three};
use crate::jobs::{self, About, First, Job, Present};
use crate::library::Timeline;

fn snapshot(id: &str, name: &str, parent: Option<&str>, running: bool) -> Snapshot {
    Snapshot {
        id: id.into(),
        name: name.into(),
        note: String::new(),
        taken: "2026-05-04 12:30".into(),
        parent: parent.map(Into::into),
        running,
        size: 512 << 20,
        is_present: false,
        is_checkpoint: false,
    }
}

/// Two that follow one another, and one that branched off.
fn tree() -> Vec<Snapshot> {
    let note = "Nothing but the system. Password: see the wiki.".to_string();
    vec![
        Snapshot { note, ..snapshot("1", "Clean install", None, false) },
        snapshot("2", "Before the upgrade", Some("1"), true),
        snapshot("3", "Try Wayland", Some("1"), true),
        Snapshot { is_present: true, ..snapshot("4", "Upgraded", Some("2"), true) },
    ]
}

fn named(id: &str, name: &str) -> Named {
    Named { id: id.into(), name: name.into() }
}

pub fn jobs() -> Vec<Job> {
    let about =
        |machine: &str, what: &str| About { machine: machine.into(), what: what.into(), logs: None, can_cancel: true };
    let running = |done, total, cancelling| jobs::State::Running { done, total, cancelling };
    vec![
        Job { id: 1, about: about("Mint", "Suspending Mint"), state: jobs::State::Failed("no space left".into()) },
        Job { id: 2, about: about("Mint", "Forking Mint"), state: jobs::State::Done },
        Job {
            id: 3,
            about: about("Debian", "Taking the snapshot “Before the second upgrade” of Debian"),
            state: running(42, 100, false),
        },
        Job {
            id: 4,
            about: about("Mint", "Deleting the snapshot “Clean install” of Mint"),
            state: running(3, 4, true),
        },
    ]
}

fn tell_snapshots(stage: &mut Stage, machine: &str, all: Vec<Snapshot>) {
    stage.tell(Update::Snapshots(Snapshots::new(machine.into(), Ok(all))));
}

/// Opens the tab, looking at a snapshot.
pub fn open(stage: &mut Stage) {
    stage.tell(Update::Machines(Ok(three())));
    stage.click("Snapshots");
    tell_snapshots(stage, "Debian", tree());
    for (id, color) in [("2", [20, 60, 110]), ("4", [110, 60, 20])] {
        let image = egui::ColorImage::filled([320, 200], egui::Color32::from_rgb(color[0], color[1], color[2]));
        stage.tell(Update::SnapshotPicture(id.into(), image));
    }
    stage.manager().perform(Action::LookAt(Some("2".into())));
    stage.harness.run();
}

/// Opens the tab of a machine with a timeline, looking at a checkpoint.
pub fn open_timeline(stage: &mut Stage) {
    open(stage);
    let checkpoint = |id: &str, time: &str| Snapshot {
        taken: format!("2026-05-04 {time}"),
        is_checkpoint: true,
        ..snapshot(id, &format!("Checkpoint 2026-05-04 {time}"), Some("2"), true)
    };
    let timeline = vec![checkpoint("t1", "12:40"), checkpoint("t2", "12:50"), checkpoint("t3", "13:00")];
    let snapshots = Snapshots::new("Debian".into(), Ok(tree()));
    stage.tell(Update::Snapshots(snapshots.with_timeline(timeline, Some(Timeline::default()))));
    stage.manager().perform(Action::LookAt(Some("t2".into())));
    stage.harness.run();
}

fn opened() -> Stage {
    let mut stage = Stage::new();
    open(&mut stage);
    stage.asked();
    stage
}

#[test]
fn the_tree_tells_each_snapshot_and_where_the_machine_stands() {
    let mut stage = opened();
    for row in [
        "Clean install, taken 2026-05-04 12:30, off, 512 MiB",
        "Before the upgrade, taken 2026-05-04 12:30, running, 512 MiB",
        "You are here, running",
    ] {
        assert!(stage.shows(row), "{row}");
    }
    assert!(stage.shows("4 snapshots, 2 GiB on this host"));
    stage.click("Clean install, taken 2026-05-04 12:30, off, 512 MiB");
    assert!(stage.shows("Nothing but the system. Password: see the wiki.") && stage.shows("Nothing: it is the first"));
    stage.click("You are here, running");
    assert!(stage.shows("What has changed since “Upgraded” is in no snapshot yet."));
}

#[test]
fn without_snapshots_the_tab_says_what_one_is_and_takes_the_first() {
    let mut stage = Stage::with_machines();
    stage.click("Snapshots");
    assert!(stage.shows("Reading the snapshots…"));
    tell_snapshots(&mut stage, "Debian", vec![]);
    assert!(stage.shows("No snapshots yet"));
    stage.click("Take Snapshot…");
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), [Request::TakeSnapshot("Debian".into(), "Snapshot".into(), String::new())]);
}

#[test]
fn the_workers_read_snapshots_only_while_they_are_looked_at() {
    let mut stage = Stage::with_machines();
    let watched = |stage: &Stage| {
        let watches = stage.asked.try_iter().filter_map(|r| if let Request::Watch(w) = r { Some(w) } else { None });
        watches.last()
    };
    stage.click("Snapshots");
    let watch = Watch { selected: Some("Debian".into()), log: false, snapshots: true };
    assert_eq!(watched(&stage), Some(watch.clone()));
    stage.click("Overview");
    assert_eq!(watched(&stage), Some(Watch { snapshots: false, ..watch.clone() }));
    stage.key(CTRL, Key::T);
    assert_eq!(watched(&stage), Some(watch));
}

#[test]
fn a_snapshot_is_taken_by_keys_alone_with_a_name_that_no_other_has() {
    let mut stage = opened();
    stage.key(CTRL, Key::T);
    assert!(stage.harness.get_by_role_and_label(Role::TextInput, "Name").is_focused());
    stage.retype("Name", "clean INSTALL");
    assert!(stage.shows("another snapshot has this name; choose another"));
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), []);
    stage.retype("Note", "It worked.");
    stage.retype("Name", "Second");
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), [Request::TakeSnapshot("Debian".into(), "Second".into(), "It worked.".into())]);
    assert!(!stage.shows("Take a snapshot of Debian"));
}

#[test]
fn restoring_keeps_the_present_unless_told_otherwise_and_says_that_a_running_machine_is_stopped() {
    let mut stage = opened();
    let open = |stage: &mut Stage| {
        stage.click("Before the upgrade, taken 2026-05-04 12:30, running, 512 MiB");
        stage.click("Restore…");
        assert!(stage.shows("Restore “Before the upgrade”?") && stage.shows("Debian is running"));
        assert!(stage.control("Cancel").is_focused());
    };
    let restore = |present, start| Request::RestoreSnapshot {
        machine: "Debian".into(),
        snapshot: named("2", "Before the upgrade"),
        present,
        start,
    };
    open(&mut stage);
    stage.key(Modifiers::NONE, Key::Escape);
    assert_eq!(stage.asked(), []);
    open(&mut stage);
    stage.click("Power off and restore");
    let keep = Some("Before restoring Before the upgrade".to_string());
    assert_eq!(stage.asked(), [restore(Present { keep, power_off: true, first: First::Keep }, true)]);
    open(&mut stage);
    stage.retype("Name of the snapshot of the present", "Upgraded");
    assert!(stage.is_disabled("Power off and restore"));
    stage.click("Take a snapshot of the present first");
    stage.click("Start it afterwards");
    assert!(stage.shows("What the machine is now is lost."));
    stage.click("Power off and restore");
    assert_eq!(stage.asked(), [restore(Present { keep: None, power_off: true, first: First::Keep }, false)]);
}

#[test]
fn what_a_machine_was_suspended_in_is_given_up_knowingly() {
    let mut stage = opened();
    stage.tell(Update::Machines(Ok(vec![machine("Debian", State::Suspended)])));
    assert!(stage.is_disabled("Take Snapshot…"));
    stage.click("Restore…");
    assert!(stage.shows("Debian is suspended"));
    stage.click("Restore");
    let asked = stage.asked();
    let [Request::RestoreSnapshot { present, start: false, .. }] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(*present, Present { keep: None, power_off: false, first: First::Keep });
}

#[test]
fn in_the_tree_the_keys_mean_the_snapshot_and_not_the_machine() {
    let mut stage = opened();
    stage.tell(Update::Machines(Ok(vec![machine("Debian", State::Stopped)])));
    let row = "Before the upgrade, taken 2026-05-04 12:30, running, 512 MiB";
    stage.control(row).focus();
    stage.harness.run();
    stage.key(Modifiers::NONE, Key::Delete);
    assert!(stage.shows("Delete “Before the upgrade”?"));
    assert!(stage.shows(
        "It can't be restored any more. The snapshot that came after it stays. What is still needed of its disks is merged, \
         which takes some time. Up to 512 MiB on this host become free."
    ));
    stage.click("Delete");
    assert_eq!(stage.asked(), [Request::DeleteSnapshot("Debian".into(), named("2", "Before the upgrade"))]);
    stage.control(row).focus();
    stage.harness.run();
    stage.key(Modifiers::NONE, Key::F2);
    stage.retype("Name", "Before it");
    stage.click("Save");
    let described = |name: &str| {
        Request::DescribeSnapshot("Debian".into(), named("2", "Before the upgrade"), name.into(), String::new())
    };
    assert_eq!(stage.asked(), [described("Before it")]);
    stage.control(row).focus();
    stage.harness.run();
    stage.key(Modifiers::NONE, Key::Enter);
    assert!(stage.shows("Restore “Before the upgrade”?"));
    stage.key(Modifiers::NONE, Key::Escape);
    // The present can't be deleted, and does not stand for its machine.
    stage.control("You are here, stopped").focus();
    stage.harness.run();
    stage.key(Modifiers::NONE, Key::Delete);
    assert_eq!(stage.asked(), []);
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), [Request::Power("Debian".into(), Power::Start)]);
}

#[test]
fn a_machine_that_runs_is_forked_and_one_that_does_not_is_not() {
    let mut stage = opened();
    stage.click("Fork…");
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), [Request::Fork("Debian".into(), "Debian 1".into())]);
    stage.tell(Update::Machines(Ok(vec![machine("Debian", State::Stopped)])));
    assert!(stage.is_disabled("Fork…"));
}

#[test]
fn what_another_program_deletes_is_no_longer_looked_at_nor_asked_about() {
    let mut stage = opened();
    stage.click("Delete…");
    assert!(stage.shows("Delete “Before the upgrade”?"));
    let rest = tree().into_iter().filter(|one| one.id != "2").collect();
    tell_snapshots(&mut stage, "Debian", rest);
    assert!(!stage.shows("Delete “Before the upgrade”?") && !stage.manager().state.is_modal());
    assert_eq!(stage.manager().state.snapshot, None);
}

#[test]
fn snapshots_that_cannot_be_read_are_explained() {
    let mut stage = Stage::with_machines();
    stage.click("Snapshots");
    let failure = Failure {
        what: "The snapshots of Debian can't be read".into(),
        cause: "Permission denied.".into(),
        next: Some("Look at it.".into()),
        offer: None,
    };
    stage.tell(Update::Snapshots(Snapshots::new("Debian".into(), Err(failure))));
    assert!(stage.shows("The snapshots of Debian can't be read") && stage.shows("Permission denied.\nLook at it."));
}

#[test]
fn jobs_tell_how_far_they_are_are_cancelled_and_keep_their_machine_to_themselves() {
    let mut stage = opened();
    stage.tell(Update::Jobs(jobs()));
    let what = "Taking the snapshot “Before the second upgrade” of Debian";
    assert!(stage.shows(what) && stage.shows("42 %") && stage.shows("Cancelling…"));
    assert!(stage.is_disabled("Take Snapshot…") && stage.is_disabled("Restore…") && stage.is_disabled("Fork…"));
    stage.click(&format!("Cancel: {what}"));
    assert_eq!(stage.asked(), [Request::Cancel(3)]);
    assert!(stage.is_disabled("Cancel: Deleting the snapshot “Clean install” of Mint"));
    // A machine whose disks are being merged is not started, by Enter either.
    stage.click("Mint, stopped");
    assert!(stage.is_disabled("Start"));
    stage.manager().perform(Action::Activate("Mint".into()));
    assert_eq!(stage.asked(), []);
    stage.tell(Update::Jobs(jobs().into_iter().filter(|job| !job.is_running()).collect()));
    assert!(!stage.shows(what) && !stage.is_disabled("Start"));
    stage.click("Tools");
    stage.click("Jobs");
    assert!(stage.shows("Suspending Mint") && stage.shows("Failed: no space left") && stage.shows("Forking Mint"));
}

#[test]
fn a_job_that_was_cancelled_is_told() {
    let mut stage = opened();
    stage.tell(Update::Cancelled("Cancelled: taking the snapshot “a” of Debian".into()));
    assert!(stage.shows("Cancelled: taking the snapshot “a” of Debian"));
}

#[test]
fn closing_the_window_while_jobs_go_on_asks_first() {
    let mut stage = opened();
    stage.tell(Update::Jobs(jobs()));
    stage.manager().close_requested();
    stage.harness.run();
    assert!(stage.shows("Close Orangery now?"));
    assert!(stage.control("Keep it open").is_focused());
    stage.click("Keep it open");
    assert!(!stage.shows("Close Orangery now?") && !stage.manager().closing);
    stage.manager().close_requested();
    stage.harness.run();
    stage.click("Give up and close");
    assert!(stage.manager().closing);
    // Nothing is asked where nothing goes on.
    let mut stage = opened();
    stage.manager().close_requested();
    assert!(!stage.manager().state.is_modal());
}

#[test]
fn a_narrow_window_unfolds_what_is_looked_at_below_its_row() {
    let mut stage = Stage::with(Vec2::new(700.0, 640.0), true);
    open(&mut stage);
    let (row, button) = (stage.control("Before the upgrade, taken 2026-05-04 12:30, running, 512 MiB").rect(), {
        stage.control("Delete…").scroll_to_me();
        stage.harness.run();
        stage.control("Delete…").rect()
    });
    assert!(button.top() > row.top() && button.right() <= 700.0);
}

#[test]
fn a_checkpoint_of_the_timeline_is_gone_back_to_opened_as_a_copy_and_kept() {
    let mut stage = Stage::new();
    open_timeline(&mut stage);
    stage.asked();
    assert!(stage.shows("4 snapshots and 3 checkpoints, 3.5 GiB on this host"));
    stage.click("Checkpoint 2026-05-04 12:50, running, 512 MiB");
    stage.click("Open as a copy…: Checkpoint 2026-05-04 12:50");
    stage.key(Modifiers::NONE, Key::Enter);
    let point = || named("t2", "Checkpoint 2026-05-04 12:50");
    let (of, new) = (Some(point()), "Debian 1".to_string());
    assert_eq!(stage.asked(), [Request::Clone { machine: "Debian".into(), of, new, full: false, start: true }]);
    stage.click("Keep…");
    assert!(stage.shows("It becomes a snapshot, which stays until you delete it."));
    stage.retype("Name", "It worked");
    stage.click("Save");
    let kept = Request::DescribeSnapshot("Debian".into(), point(), "It worked".into(), String::new());
    assert_eq!(stage.asked(), [kept]);
    // One that is off keeps the present on its timeline by itself.
    stage.tell(Update::Machines(Ok(vec![machine("Debian", State::Stopped)])));
    stage.control("Checkpoint 2026-05-04 12:50, running, 512 MiB").focus();
    stage.harness.run();
    stage.key(Modifiers::NONE, Key::Enter);
    assert!(stage.shows("What the machine is now stays on its timeline."));
    stage.click("Restore");
    let asked = stage.asked();
    let [Request::RestoreSnapshot { snapshot, present, .. }] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((snapshot, present), (&point(), &Present { keep: None, power_off: false, first: First::Keep }));
}

#[test]
fn a_timeline_is_begun_changed_and_ended_in_a_dialog() {
    let mut stage = opened();
    stage.click("Timeline…");
    stage.click("Keep a timeline");
    stage.click("Save");
    assert_eq!(stage.asked(), [Request::SetTimeline("Debian".into(), Some(Timeline::default()))]);
    let mut stage = Stage::new();
    open_timeline(&mut stage);
    stage.asked();
    stage.click("Timeline…");
    stage.click("Keep a timeline");
    assert!(stage.shows("The checkpoints that there are stay until you delete them."));
    stage.click("Save");
    assert_eq!(stage.asked(), [Request::SetTimeline("Debian".into(), None)]);
}

#[test]
fn a_machine_that_is_off_is_cloned_and_of_one_that_runs_a_snapshot() {
    let mut stage = opened();
    assert!(stage.is_disabled("Clone…"));
    stage.click("Clone…: Before the upgrade");
    stage.click("Full");
    stage.click("Start it");
    stage.retype("Name", "mint");
    assert!(stage.shows("another virtual machine has this name; choose another"));
    stage.retype("Name", "Copy");
    stage.click("Clone");
    let (of, new) = (Some(named("2", "Before the upgrade")), "Copy".to_string());
    assert_eq!(stage.asked(), [Request::Clone { machine: "Debian".into(), of, new, full: true, start: false }]);
    stage.tell(Update::Machines(Ok(vec![machine("Debian", State::Stopped)])));
    stage.click("Clone…");
    stage.click("Linked");
    stage.click("Clone");
    let new = "Debian 1".to_string();
    assert_eq!(stage.asked(), [Request::Clone { machine: "Debian".into(), of: None, new, full: false, start: false }]);
}
