//! Disk images in the manager's window.

use egui::accesskit::Role;
use egui::{Key, Modifiers};
use egui_kittest::kittest::Queryable;
use vmm_core::backend::disk::Format;
use vmm_core::config::VmConfig;

use super::super::action::{Action, DiskWork, Power, Purpose, Request, Update};
use super::super::model::{DiskSizes, Failure, ImageFacts, Machine, Offer, State};
use super::{CTRL, Stage, config, machine, three};
use crate::jobs::disks::Size;
use crate::jobs::{Disk, First};

fn mint() -> Disk {
    Disk::Of { machine: "Mint".into(), disk: 0 }
}

/// The hardware of a machine that is off.
fn hardware() -> Stage {
    let mut stage = Stage::with_machines();
    stage.click("Mint, stopped");
    stage.key(CTRL, Key::Comma);
    stage.asked();
    stage
}

/// An item of a disk's menu.
fn choose(stage: &mut Stage, item: &str) {
    stage.click("More: Disk 1");
    stage.click(item);
}

fn facts(format: &'static str, problems: &[&str]) -> ImageFacts {
    ImageFacts {
        sizes: DiskSizes { format, guest: 8 << 30, host: 2 << 30, shared: 0 },
        is_usable: matches!(format, "raw" | "qcow2"),
        below: vec![],
        problems: problems.iter().map(ToString::to_string).collect(),
    }
}

/// The dialog with an image that was looked at.
pub fn open_image(stage: &mut Stage) {
    stage.tell(Update::Machines(Ok(three())));
    stage.click("Tools");
    stage.click("Disk images…");
    stage.manager().perform(Action::Picked(Purpose::Image, "/home/ann/old.vmdk".into()));
    let problem = "Machines can't use VMDK images as they are; convert it first.";
    stage.tell(Update::Image("/home/ann/old.vmdk".into(), Ok(facts("vmdk", &[problem]))));
}

#[test]
fn a_disk_tells_how_large_it_is_and_grows_by_keys_alone() {
    let mut stage = hardware();
    assert!(stage.shows("40 GiB (raw), 3 GiB on this host"));
    choose(&mut stage, "Grow…");
    assert!(stage.harness.get_by_role_and_label(Role::TextInput, "Size").is_focused());
    assert!(stage.is_disabled("Grow"));
    stage.retype("Size", "20G");
    assert!(stage.shows("It has 40 GiB already: write more"));
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), []);
    stage.retype("Size", "+20G");
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), [Request::Disk(mint(), DiskWork::Grow(Size::By(20 << 30), First::Keep))]);
    assert!(!stage.manager().state.is_modal());
}

#[test]
fn a_machine_gets_another_disk_unless_its_settings_are_being_changed() {
    let mut stage = hardware();
    stage.click("New disk…");
    assert!(stage.shows("New disk for Mint"));
    let size = stage.manager().model.default_disk();
    assert!(stage.shows("Size of the new disk") && size >= 8 << 30);
    stage.click("Add");
    assert_eq!(stage.asked(), [Request::AddDisk("Mint".into(), size)]);
    assert!(!stage.manager().state.is_modal());
    stage.click("Eject: CD drive");
    assert!(stage.is_disabled("New disk…"));
    let mut stage = hardware();
    stage.tell(Update::Machines(Ok(vec![machine("Mint", State::Suspended)])));
    assert!(stage.is_disabled("New disk…"));
}

#[test]
fn a_machine_with_a_timeline_is_said_to_keep_a_checkpoint_before_it_loses_something() {
    let mut stage = hardware();
    let off = Machine { has_timeline: true, ..machine("Mint", State::Stopped) };
    stage.tell(Update::Machines(Ok(vec![off])));
    choose(&mut stage, "Grow…");
    assert!(stage.shows("A checkpoint is kept on its timeline first."));
    stage.key(Modifiers::NONE, Key::Escape);
    let runs = Machine { has_timeline: true, ..machine("Mint", State::Running) };
    stage.tell(Update::Machines(Ok(vec![runs])));
    stage.click("More");
    stage.click("Reset…");
    assert!(stage.shows("A checkpoint of what it is now is kept on its timeline first."));
    stage.click("Reset");
    assert_eq!(stage.asked(), [Request::Power("Mint".into(), Power::Reset)]);
}

#[test]
fn a_disk_is_compacted_checked_and_converted_from_its_menu() {
    let mut stage = hardware();
    for (item, work) in [("Compact", DiskWork::Compact), ("Check", DiskWork::Check)] {
        choose(&mut stage, item);
        assert_eq!(stage.asked(), [Request::Disk(mint(), work)]);
    }
    choose(&mut stage, "Convert to qcow2…");
    assert!(stage.shows("Convert disk 1 of Mint to qcow2?"));
    stage.click("Cancel");
    assert_eq!(stage.asked(), []);
    choose(&mut stage, "Convert to qcow2…");
    stage.click("Convert");
    assert_eq!(stage.asked(), [Request::SwitchDisk("Mint".into(), 0, Format::Qcow2)]);
    // An image that is kept elsewhere is nothing that its machine may replace.
    let mut elsewhere = machine("Mint", State::Stopped);
    elsewhere.folder = "/srv/machines/Mint".into();
    stage.tell(Update::Machines(Ok(vec![elsewhere])));
    stage.click("More: Disk 1");
    assert!(!stage.is_disabled("Grow…") && stage.is_disabled("Convert to qcow2…"));
}

#[test]
fn nothing_is_done_to_a_disk_whose_machine_is_suspended_or_whose_settings_are_being_changed() {
    let mut stage = hardware();
    stage.tell(Update::Machines(Ok(vec![machine("Mint", State::Suspended)])));
    stage.click("More: Disk 1");
    assert!(stage.is_disabled("Grow…") && stage.is_disabled("Compact") && stage.is_disabled("Check"));
    let mut stage = hardware();
    stage.click("Eject: CD drive");
    stage.click("More: Disk 1");
    assert!(stage.is_disabled("Grow…") && stage.is_disabled("Convert to qcow2…"));
    let mut stage = hardware();
    stage.tell(Update::Machines(Ok(vec![machine("Mint", State::Running)])));
    assert!(stage.is_disabled("More: Disk 1"));
}

#[test]
fn settings_that_were_changed_meanwhile_are_not_saved_over_that() {
    let mut stage = hardware();
    stage.click("Eject: CD drive");
    assert!(!stage.is_disabled("Save changes"));
    // A snapshot gives its disk another image.
    let disks = vec![vmm_core::config::DiskConfig::new("disks/disk-0-0123456789ab.qcow2")];
    let later = Machine { config: Ok(VmConfig { disks, ..config() }), ..machine("Mint", State::Stopped) };
    stage.tell(Update::Machines(Ok(vec![later.clone()])));
    assert!(stage.shows("These settings were changed meanwhile") && stage.is_disabled("Save changes"));
    stage.click("Revert");
    assert!(!stage.shows("These settings were changed meanwhile"));
    stage.click("Eject: CD drive");
    stage.click("Save changes");
    let asked = stage.asked();
    let [Request::Save(_, saved, before)] = asked.as_slice() else { panic!("{asked:?}") };
    let kept = later.config.unwrap();
    assert_eq!((&saved.disks, &**before), (&kept.disks, &kept));
}

#[test]
fn any_image_is_looked_at_and_converted() {
    let mut stage = Stage::with_machines();
    stage.click("Tools");
    stage.click("Disk images…");
    stage.click("Choose: Image");
    assert_eq!(stage.asked(), [Request::AskDesktop(Purpose::Image)]);
    stage.tell(Update::Chosen(Purpose::Image, Some("/home/ann/old.vmdk".into())));
    assert_eq!(stage.asked(), [Request::LookAtImage("/home/ann/old.vmdk".into())]);
    assert!(stage.shows("Reading the image…"));
    let problem = "Machines can't use VMDK images as they are; convert it first.";
    stage.tell(Update::Image("/home/ann/old.vmdk".into(), Ok(facts("vmdk", &[problem]))));
    assert!(stage.shows("vmdk") && stage.shows("8 GiB") && stage.shows(problem));
    assert!(stage.is_disabled("Grow…") && stage.is_disabled("Compact") && stage.is_disabled("Check"));
    stage.click("Convert…");
    assert!(stage.harness.get_by_role_and_label(Role::TextInput, "New file").is_focused());
    stage.retype("New file", "old.qcow2");
    assert!(stage.is_disabled("Convert"));
    stage.retype("New file", "/home/ann/old.vmdk");
    assert!(stage.shows("This is the image itself: choose another name"));
    stage.retype("New file", "/home/ann/new.qcow2");
    stage.click("raw");
    stage.click("Convert");
    let (from, to) = ("/home/ann/old.vmdk".into(), "/home/ann/new.raw".into());
    assert_eq!(stage.asked(), [Request::Convert(from, to, Format::Raw)]);
}

#[test]
fn an_image_is_looked_at_when_its_path_is_typed_and_one_that_is_none_is_explained() {
    let mut stage = Stage::with_machines();
    stage.manager().perform(Action::Command(super::super::action::Command::DiskImages));
    stage.harness.run();
    assert!(stage.harness.get_by_role_and_label(Role::TextInput, "Image").is_focused());
    stage.harness.get_by_role_and_label(Role::TextInput, "Image").type_text("/home/ann/a.qcow2");
    stage.harness.run();
    assert_eq!(stage.asked(), []);
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), [Request::LookAtImage("/home/ann/a.qcow2".into())]);
    // A late answer for another one is ignored.
    stage.tell(Update::Image("/home/ann/b.qcow2".into(), Ok(facts("qcow2", &[]))));
    assert!(!stage.shows("qcow2"));
    stage.tell(Update::Image("/home/ann/a.qcow2".into(), Ok(facts("qcow2", &[]))));
    stage.click("Grow…");
    assert!(stage.harness.get_by_role_and_label(Role::TextInput, "Size").is_focused());
    stage.retype("Size", "16G");
    stage.click("Grow");
    let disk = || Disk::File("/home/ann/a.qcow2".into());
    assert_eq!(stage.asked(), [Request::Disk(disk(), DiskWork::Grow(Size::To(16 << 30), First::Keep))]);
    stage.manager().perform(Action::LookAtImage("/home/ann/a.qcow2".into()));
    stage.asked();
    let failure = Failure {
        what: "a.qcow2 is no disk image that can be read".into(),
        cause: "It is empty.".into(),
        next: None,
        offer: None,
    };
    stage.tell(Update::Image("/home/ann/a.qcow2".into(), Err(failure)));
    assert!(stage.shows("a.qcow2 is no disk image that can be read") && stage.shows("It is empty."));
}

#[test]
fn what_can_be_done_about_a_failure_is_one_click_away() {
    let mut stage = Stage::with_machines();
    let anyway = Request::LoseAnyway("Debian".into(), Power::Off);
    let offer = Some(Box::new(Offer { label: "Power off all the same", request: anyway.clone() }));
    let what = "Debian was not powered off";
    stage.tell(Update::Failed(Failure { what: what.into(), cause: "No space.".into(), next: None, offer }));
    stage.click("Power off all the same");
    assert_eq!(stage.asked(), [anyway]);
    assert!(!stage.shows(what));
}
