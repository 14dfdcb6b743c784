//! The manager's window without a display: the model is told, the person clicks and types, the requests are looked at.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};

use egui::accesskit::Role;
use egui::{Key, Modifiers, Vec2};
use egui_kittest::kittest::{NodeT, Queryable};
use egui_kittest::{Harness, Node};
use vmm_core::config::{CdromConfig, DiskBus, DiskConfig, VmConfig};

use super::action::{Power, Purpose, Request, Settings, Update, Watch};
use super::model::{Check, DiskFacts, DiskSizes, Failure, Log, Machine, Picture, Snapshots, State};
use super::picker::Entry;
use super::{Manager, tokens};
use crate::library::{Firmware, HostLimits, Medium, MediumKind, NewDisk, Trashed, UefiSupport};
use crate::theme::{self, Appearance};

#[path = "disk_tests.rs"]
mod disks;
#[path = "snapshot_tests.rs"]
mod snapshots;

/// A manager, and the other ends of its channels.
struct Stage {
    harness: Harness<'static, Option<Manager>>,
    tell: Sender<Update>,
    asked: Receiver<Request>,
}

/// The Ctrl key, as a window reports it.
const CTRL: Modifiers = Modifiers { ctrl: true, command: true, ..Modifiers::NONE };

const HOST: HostLimits =
    HostLimits { cpus: 8, memory_mib: 16_000, memory_available_mib: 9_000, space: 200 << 30, uefi: UefiSupport::Good };

impl Stage {
    fn with(size: Vec2, dark: bool) -> Stage {
        let (tell, updates) = mpsc::channel();
        let (ask, asked) = mpsc::channel();
        let theme = if dark { egui::Theme::Dark } else { egui::Theme::Light };
        let mut ends = Some((ask, updates));
        let app = move |ui: &mut egui::Ui, manager: &mut Option<Manager>| {
            if let Some((ask, updates)) = ends.take() {
                // Fonts are there from the next frame on.
                theme::install(ui.ctx());
                let send = Box::new(move |request| ask.send(request).unwrap());
                *manager = Some(Manager::new(ui.ctx().clone(), send, updates));
                ui.ctx().request_repaint();
            } else if let Some(manager) = manager {
                manager.receive();
                manager.draw(ui);
            }
        };
        let harness = Harness::builder().with_size(size).with_theme(theme).build_ui_state(app, None);
        let mut stage = Stage { harness, tell, asked };
        let appearance = if dark { Appearance::Dark } else { Appearance::Light };
        stage.tell(Update::Settings(Settings { appearance, scale: 100 }));
        stage.tell(Update::Library("/home/ann/machines".into()));
        stage.tell(Update::Host(HOST, vec![]));
        stage
    }

    fn new() -> Stage {
        Stage::with(theme::size::WINDOW, true)
    }

    fn with_machines() -> Stage {
        let mut stage = Stage::new();
        stage.tell(Update::Machines(Ok(three())));
        stage.asked();
        stage
    }

    fn tell(&mut self, update: Update) {
        self.tell.send(update).unwrap();
        self.harness.run();
    }

    fn manager(&mut self) -> &mut Manager {
        self.harness.state_mut().as_mut().unwrap()
    }

    /// Clicks a control (and not the words on it), after scrolling to it.
    fn click(&mut self, label: &str) {
        self.control(label).scroll_to_me();
        self.harness.run();
        self.control(label).click();
        self.harness.run();
    }

    fn control<'a>(&'a self, label: &'a str) -> Node<'a> {
        let mut found = self.harness.query_all_by_label(label);
        let control = found.find(|node| node.accesskit_node().role() != Role::Label);
        control.unwrap_or_else(|| panic!("there is no control called {label:?}"))
    }

    fn key(&mut self, modifiers: Modifiers, key: Key) {
        self.harness.key_press_modifiers(modifiers, key);
        self.harness.run();
    }

    /// Replaces what is in a text field.
    fn retype(&mut self, label: &str, text: &str) {
        self.harness.get_by_role_and_label(Role::TextInput, label).focus();
        self.harness.run();
        self.key(CTRL, Key::A);
        self.harness.get_by_role_and_label(Role::TextInput, label).type_text(text);
        self.harness.run();
    }

    fn is_disabled(&self, label: &str) -> bool {
        self.control(label).accesskit_node().is_disabled()
    }

    fn shows(&self, label: &str) -> bool {
        self.harness.query_all_by_label(label).next().is_some()
    }

    /// What was asked for since the last time, without what only says where the person looks.
    fn asked(&self) -> Vec<Request> {
        let passive = |request: &Request| matches!(request, Request::Watch(_) | Request::CheckHost { tell: false });
        self.asked.try_iter().filter(|request| !passive(request)).collect()
    }
}

fn config() -> VmConfig {
    VmConfig {
        disks: vec![DiskConfig::new("disks/disk-0.img")],
        cdroms: vec![CdromConfig { path: Some("/isos/debian-12.iso".into()) }],
        ..VmConfig::new(2, 2048)
    }
}

fn machine(name: &str, state: State) -> Machine {
    let folder = PathBuf::from("/home/ann/machines").join(name.to_lowercase());
    let path = folder.join("disks/disk-0.img");
    let sizes = DiskSizes { format: "raw", guest: 40 << 30, host: 3 << 30, shared: 0 };
    Machine {
        name: name.into(),
        state,
        config: Ok(config()),
        disks: vec![DiskFacts { path, sizes: Ok(sizes) }],
        has_timeline: false,
        headless: false,
        without_saving: false,
        drives: state.is_alive().then(|| vec![Some("/isos/debian-12.iso".into())]),
        problem: None,
        folder,
    }
}

fn three() -> Vec<Machine> {
    vec![machine("Debian", State::Running), machine("Fedora", State::Paused), machine("Mint", State::Stopped)]
}

fn iso() -> Medium {
    let kind = MediumKind::Iso { label: Some("GRUB_RESCUE".into()), bios: true, uefi: false };
    Medium { path: "/isos/grub.iso".into(), size: 5 << 20, kind }
}

fn trashed(name: &str) -> Trashed {
    Trashed { id: "0".repeat(32), name: name.into(), deleted: crate::library::Timestamp(0), folder: "/t".into() }
}

fn all<'a>(node: Node<'a>, nodes: &mut Vec<Node<'a>>) {
    for child in node.children() {
        all(child, nodes);
    }
    nodes.push(node);
}

#[test]
fn an_empty_library_offers_three_ways_on_and_each_leads_somewhere() {
    let mut stage = Stage::new();
    stage.tell(Update::Machines(Ok(vec![])));
    stage.asked();
    for (card, request) in [
        ("Run a Linux desktop", Request::AskDesktop(Purpose::Medium(0))),
        ("New sandbox", Request::Demo),
        ("Open a file", Request::AskDesktop(Purpose::Open)),
    ] {
        stage.click(card);
        assert_eq!(stage.asked(), [request], "{card}");
    }
}

#[test]
fn a_file_is_opened_without_a_desktop_dialog_by_typing_its_path() {
    let mut stage = Stage::new();
    stage.tell(Update::Machines(Ok(vec![])));
    stage.asked();
    stage.key(CTRL, Key::O);
    assert_eq!(stage.asked(), [Request::AskDesktop(Purpose::Open)]);
    stage.tell(Update::NoDialog(Purpose::Open));
    let Some(Request::List(folder)) = stage.asked().pop() else { panic!("no folder was asked for") };
    let iso = Entry { name: "grub.iso".into(), size: Some(5 << 20) };
    stage.tell(Update::Listed(folder.clone(), Ok(vec![iso])));
    assert!(stage.harness.get_by_role(Role::TextInput).is_focused());
    stage.harness.get_by_role(Role::TextInput).type_text("grub");
    stage.harness.run();
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), [Request::Inspect(folder.join("grub.iso"))]);
    assert!(stage.shows("New virtual machine"));
}

#[test]
fn a_dropped_iso_becomes_a_machine_with_two_clicks_at_most() {
    let mut stage = Stage::with_machines();
    let file = egui::DroppedFile { path: Some("/isos/grub.iso".into()), ..Default::default() };
    stage.harness.input_mut().dropped_files.push(file);
    stage.harness.run();
    assert_eq!(stage.asked(), [Request::Inspect("/isos/grub.iso".into())]);
    let medium = iso();
    let new = medium.suggest(&HOST);
    stage.tell(Update::Inspected("/isos/grub.iso".into(), Ok((medium, new.clone()))));
    assert!(stage.shows("grub.iso"));
    stage.click("Create and start");
    assert_eq!(stage.asked(), [Request::Create { new: new.clone(), start: true }]);
    // Once, however often the button is clicked; again when it came to nothing.
    assert!(stage.harness.get_by_label("Create and start").accesskit_node().is_disabled());
    stage.manager().perform(super::Action::Create { start: true });
    assert_eq!(stage.asked(), []);
    let full = Failure {
        what: "grub could not be created".into(),
        cause: "The disk is full.".into(),
        next: None,
        offer: None,
    };
    stage.tell(Update::NotCreated(full));
    assert!(stage.shows("grub could not be created"));
    stage.click("Create and start");
    assert_eq!(stage.asked(), [Request::Create { new, start: true }]);
}

#[test]
fn a_file_that_is_nothing_is_explained_where_the_machine_would_be_made() {
    let mut stage = Stage::with_machines();
    stage.key(CTRL, Key::N);
    stage.manager().perform(super::Action::Picked(Purpose::Open, "/a.pdf".into()));
    let failure =
        Failure { what: "Nothing can be made of a.pdf".into(), cause: "It is a PDF.".into(), next: None, offer: None };
    stage.tell(Update::Inspected("/a.pdf".into(), Err(failure)));
    assert!(stage.shows("Nothing can be made of a.pdf") && stage.shows("It is a PDF."));
}

#[test]
fn what_is_wrong_with_a_new_machine_stands_beside_its_field_and_nothing_is_made() {
    let mut stage = Stage::with_machines();
    stage.key(CTRL, Key::N);
    stage.harness.get_by_role_and_label(Role::TextInput, "Name").focus();
    stage.harness.run();
    stage.key(CTRL, Key::A);
    stage.harness.get_by_role_and_label(Role::TextInput, "Name").type_text("mint");
    stage.harness.run();
    assert!(stage.shows("another virtual machine has this name; choose another"));
    assert!(stage.harness.get_by_label("Create and start").accesskit_node().is_disabled());
    stage.harness.get_by_role_and_label(Role::TextInput, "Name").type_text(" 2");
    stage.harness.run();
    stage.click("Create");
    let asked = stage.asked();
    let [Request::Create { new, start: false }] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((new.name.as_str(), new.cpus, new.memory_mib), ("mint 2", 4, 4096));
    assert_eq!(new.disks, [NewDisk::create(40 << 30)]);
}

#[test]
fn the_library_tells_each_state_by_a_word_and_the_arrow_keys_walk_it() {
    let mut stage = Stage::with_machines();
    for row in ["Debian, running", "Fedora, paused", "Mint, stopped"] {
        assert!(stage.shows(row), "{row}");
    }
    stage.key(Modifiers::NONE, Key::ArrowDown);
    stage.key(Modifiers::NONE, Key::ArrowDown);
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), [Request::Power("Mint".into(), Power::Start)]);
    stage.key(Modifiers::NONE, Key::ArrowUp);
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), [Request::ShowConsole("Fedora".into())]);
}

#[test]
fn search_narrows_the_library() {
    let mut stage = Stage::with_machines();
    stage.key(CTRL, Key::F);
    stage.harness.get_by_role_and_label(Role::TextInput, "Search").type_text("fed");
    stage.harness.run();
    assert!(stage.shows("Fedora, paused") && !stage.shows("Debian, running"));
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.manager().state.selected.as_deref(), Some("Fedora"));
}

#[test]
fn only_verbs_that_make_sense_can_be_used() {
    let mut stage = Stage::with_machines();
    let disabled = |stage: &Stage, label: &str| stage.harness.get_by_label(label).accesskit_node().is_disabled();
    assert!(!disabled(&stage, "Show console") && !disabled(&stage, "Shut Down") && !disabled(&stage, "Pause"));
    stage.click("Shut Down");
    stage.click("Pause");
    let name = || "Debian".to_string();
    assert_eq!(stage.asked(), [Request::Power(name(), Power::ShutDown), Request::Power(name(), Power::Pause)]);
    stage.click("Fedora, paused");
    assert!(disabled(&stage, "Shut Down"));
    stage.click("Resume");
    assert_eq!(stage.asked(), [Request::Power("Fedora".into(), Power::Resume)]);
    stage.click("Mint, stopped");
    assert!(disabled(&stage, "Shut Down") && disabled(&stage, "Pause"));
    stage.click("Start");
    assert_eq!(stage.asked(), [Request::Power("Mint".into(), Power::Start)]);
}

#[test]
fn pulling_the_plug_asks_first_and_escape_keeps_the_machine() {
    let mut stage = Stage::with_machines();
    let open = |stage: &mut Stage| {
        stage.click("More");
        stage.click("Power Off…");
        assert!(stage.shows("Power off Debian?"));
    };
    open(&mut stage);
    stage.key(Modifiers::NONE, Key::Escape);
    assert!(!stage.shows("Power off Debian?"));
    assert_eq!(stage.asked(), []);
    open(&mut stage);
    assert!(stage.harness.get_by_label("Cancel").is_focused());
    stage.click("Power Off");
    assert_eq!(stage.asked(), [Request::Power("Debian".into(), Power::Off)]);
}

#[test]
fn a_deleted_machine_can_be_brought_back_and_a_running_one_is_not_deleted() {
    let mut stage = Stage::with_machines();
    stage.key(Modifiers::NONE, Key::Delete);
    assert_eq!(stage.asked(), []);
    stage.click("Mint, stopped");
    // The row has the keyboard now; the key works there too.
    stage.key(Modifiers::NONE, Key::Delete);
    assert_eq!(stage.asked(), [Request::Delete("Mint".into())]);
    stage.tell(Update::Deleted(trashed("Mint"), ", with its disk of 3 GiB".into()));
    assert!(stage.shows("Mint is in the trash, with its disk of 3 GiB"));
    stage.click("Undo");
    assert_eq!(stage.asked(), [Request::Restore(trashed("Mint"))]);
    assert!(!stage.shows("Undo"));
}

#[test]
fn a_machine_is_renamed_by_keys_alone_and_a_taken_name_is_refused() {
    let mut stage = Stage::with_machines();
    stage.click("Mint, stopped");
    stage.key(Modifiers::NONE, Key::F2);
    assert!(stage.harness.get_by_role_and_label(Role::TextInput, "New name").is_focused());
    stage.key(CTRL, Key::A);
    stage.harness.get_by_role_and_label(Role::TextInput, "New name").type_text("debian");
    stage.harness.run();
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), []);
    stage.harness.get_by_role_and_label(Role::TextInput, "New name").focus();
    stage.harness.run();
    stage.harness.get_by_role_and_label(Role::TextInput, "New name").type_text("2");
    stage.harness.run();
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), [Request::Rename("Mint".into(), "debian2".into())]);
}

#[test]
fn a_running_machine_keeps_its_hardware_but_its_cd_can_be_changed() {
    let mut stage = Stage::with_machines();
    stage.key(CTRL, Key::Comma);
    assert!(stage.shows("This virtual machine is running"));
    assert!(stage.harness.get_by_label("Attach a disk image…").accesskit_node().is_disabled());
    stage.click("Eject");
    assert_eq!(stage.asked(), [Request::ChangeMedium("Debian".into(), 0, None)]);
    stage.click("Change…: CD drive");
    assert_eq!(stage.asked(), [Request::AskDesktop(Purpose::Medium(0))]);
    stage.tell(Update::Chosen(Purpose::Medium(0), Some("/b.iso".into())));
    assert_eq!(stage.asked(), [Request::ChangeMedium("Debian".into(), 0, Some("/b.iso".into()))]);
}

#[test]
fn a_stopped_machines_settings_are_edited_checked_saved_and_reverted() {
    let mut stage = Stage::with_machines();
    stage.click("Mint, stopped");
    stage.key(CTRL, Key::Comma);
    assert!(!stage.shows("Save changes"));
    stage.click("Add a network card");
    // One that is not plugged in can be.
    assert!(!stage.harness.get_by_label("Save changes").accesskit_node().is_disabled());
    let tap = "Tap interface of network card 1";
    stage.harness.get_by_role_and_label(Role::TextInput, tap).focus();
    stage.harness.run();
    stage.harness.get_by_role_and_label(Role::TextInput, tap).type_text("a/");
    stage.harness.run();
    assert!(stage.harness.get_by_label("Save changes").accesskit_node().is_disabled());
    stage.key(Modifiers::NONE, Key::Backspace);
    stage.key(Modifiers::NONE, Key::Backspace);
    stage.harness.get_by_role_and_label(Role::TextInput, tap).type_text("tap0");
    stage.harness.run();
    stage.click("Save changes");
    let asked = stage.asked();
    let [Request::Save(name, saved, _)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((name.as_str(), saved.nets[0].tap.as_deref()), ("Mint", Some("tap0")));
    stage.click("Revert");
    assert!(!stage.shows("Save changes"));
    stage.click("Eject: CD drive");
    stage.click("Save changes");
    let asked = stage.asked();
    let [Request::Save(_, saved, _)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((saved.cdroms[0].path.as_ref(), saved.nets.len()), (None, 0));
}

#[test]
fn a_disks_controller_is_chosen_where_it_is_folded_away() {
    let mut stage = Stage::with_machines();
    stage.click("Mint, stopped");
    stage.key(CTRL, Key::Comma);
    assert!(!stage.shows("Disk 1: SATA"));
    stage.click("Controllers");
    stage.click("Disk 1: SATA");
    stage.click("Save changes");
    let asked = stage.asked();
    let [Request::Save(_, saved, _)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(saved.disks[0].bus, DiskBus::Sata);
    stage.click("Revert");
    stage.key(CTRL, Key::N);
    stage.click("More settings");
    stage.click("Disk 1: SATA");
    stage.click("Create");
    let asked = stage.asked();
    let [Request::Create { new, .. }] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(new.disks[0].bus(), DiskBus::Sata);
}

#[test]
fn uefi_variables_are_reset_only_after_a_question() {
    let mut stage = Stage::with_machines();
    let mut machines = three();
    machines[2].config = Ok(VmConfig { boot: Firmware::Uefi.boot(), ..config() });
    stage.tell(Update::Machines(Ok(machines)));
    stage.click("Mint, stopped");
    stage.key(CTRL, Key::Comma);
    stage.click("Reset variables…");
    stage.click("Cancel");
    assert_eq!(stage.asked(), []);
    stage.click("Reset variables…");
    stage.click("Reset variables");
    assert_eq!(stage.asked(), [Request::ResetVariables("Mint".into())]);
}

#[test]
fn the_firmware_is_chosen_by_the_medium_and_the_host_and_may_be_changed() {
    let kind = MediumKind::Iso { label: None, bios: true, uefi: true };
    let medium = Medium { kind, ..iso() };
    for (uefi, firmware) in [(UefiSupport::Good, Firmware::Uefi), (UefiSupport::Software, Firmware::Bios)] {
        let mut stage = Stage::with_machines();
        let host = HostLimits { uefi, ..HOST };
        stage.tell(Update::Host(host, vec![]));
        stage.key(CTRL, Key::N);
        stage.manager().perform(super::Action::Picked(Purpose::Open, medium.path.clone()));
        let found = (medium.clone(), medium.suggest(&host));
        stage.tell(Update::Inspected(medium.path.clone(), Ok(found)));
        stage.asked();
        stage.click("More settings");
        let reason = firmware.remark(Some(&medium.kind), uefi);
        assert_eq!(reason.is_some(), firmware == Firmware::Bios);
        assert!(reason.is_none_or(|reason| stage.shows(reason)), "{reason:?} is not shown");
        let chosen = |stage: &mut Stage| {
            stage.click("Create");
            let asked = stage.asked();
            // It came to nothing, so the form can be used again.
            let full = Failure { what: "No".into(), cause: "The disk is full.".into(), next: None, offer: None };
            stage.tell(Update::NotCreated(full));
            match asked.as_slice() {
                [Request::Create { new, start: false }] => Firmware::of(&new.boot),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(chosen(&mut stage), Some(firmware));
        stage.click("UEFI with Secure Boot");
        assert_eq!(chosen(&mut stage), Some(Firmware::UefiSecure));
        stage.click("BIOS");
        assert_eq!(chosen(&mut stage), Some(Firmware::Bios));
    }
}

#[test]
fn a_broken_file_is_explained_and_hurts_no_other_machine() {
    let mut stage = Stage::new();
    let problem = "machine.toml, line 4: cpus: a machine has 1 to 64 CPUs, not 0.";
    let mut machines = three();
    machines.push(Machine { state: State::Broken, config: Err(problem.into()), ..machine("Zorin", State::Broken) });
    stage.tell(Update::Machines(Ok(machines)));
    stage.click("Zorin, needs attention");
    assert!(stage.shows(problem));
    assert!(stage.harness.get_by_label("Start").accesskit_node().is_disabled());
    stage.click("Mint, stopped");
    assert!(!stage.harness.get_by_label("Start").accesskit_node().is_disabled());
}

#[test]
fn a_host_that_cannot_run_machines_says_why_and_how_to_mend_it() {
    let mut stage = Stage::new();
    let check = Check {
        what: "Virtualization (KVM)".into(),
        cause: "/dev/kvm is there, but you are not permitted to use it.".into(),
        remedy: "Join the group kvm.".into(),
        command: Some("sudo usermod -aG kvm $USER".into()),
        fatal: true,
    };
    stage.tell(Update::Machines(Ok(vec![])));
    stage.tell(Update::Host(HOST, vec![check]));
    stage.asked();
    assert!(stage.shows("Virtualization (KVM)") && stage.shows("sudo usermod -aG kvm $USER"));
    stage.harness.get_by_label("Copy the command").click_accesskit();
    stage.harness.step();
    let commands = &stage.harness.output().platform_output.commands;
    let copied =
        commands.iter().any(|c| matches!(c, egui::OutputCommand::CopyText(t) if t.starts_with("sudo usermod")));
    assert!(copied, "{commands:?}");
    stage.harness.run();
    stage.click("Check this host");
    assert_eq!(stage.asked(), [Request::CheckHost { tell: true }]);
    stage.key(CTRL, Key::N);
    assert!(stage.harness.get_by_label("Create and start").accesskit_node().is_disabled());
    assert!(!stage.harness.get_by_label("Create").accesskit_node().is_disabled());
}

#[test]
fn a_failure_stays_until_it_is_closed_and_says_what_to_do_next() {
    let mut stage = Stage::with_machines();
    let next = Some("Look at its log.".to_string());
    let failure = Failure { what: "Mint did not start".into(), cause: "The disk is in use.".into(), next, offer: None };
    stage.tell(Update::Failed(failure.clone()));
    stage.tell(Update::Failed(failure));
    assert_eq!(stage.harness.query_all_by_label("Mint did not start").count(), 1);
    assert!(stage.shows("The disk is in use.\nLook at its log."));
    stage.click("Dismiss");
    assert!(!stage.shows("Mint did not start"));
}

#[test]
fn keys_open_what_they_say_and_are_listed() {
    let mut stage = Stage::with_machines();
    stage.key(Modifiers::NONE, Key::F1);
    assert!(stage.shows("Keys") && stage.shows("New virtual machine") && stage.shows("Move to trash"));
    stage.click("Close");
    stage.key(CTRL, Key::N);
    assert!(stage.shows("Create and start"));
    stage.key(Modifiers::NONE, Key::Escape);
    assert!(!stage.shows("Create and start"));
    stage.key(CTRL, Key::Plus);
    let larger = Settings { appearance: Appearance::Dark, scale: 115 };
    assert_eq!(stage.asked(), [Request::Keep(larger)]);
    // One event, and the frame that it makes: what that frame asks of the window is gone with the next.
    let quit = egui::Event::Key { key: Key::Q, physical_key: None, pressed: true, repeat: false, modifiers: CTRL };
    stage.harness.input_mut().events.push(quit);
    stage.harness.step();
    let commands = &stage.harness.output().viewport_output[&egui::ViewportId::ROOT].commands;
    assert!(commands.contains(&egui::ViewportCommand::Close), "{commands:?}");
}

#[test]
fn typing_a_name_deletes_and_renames_nothing() {
    let mut stage = Stage::with_machines();
    stage.click("Mint, stopped");
    stage.key(CTRL, Key::F);
    stage.key(Modifiers::NONE, Key::Delete);
    stage.key(Modifiers::NONE, Key::Enter);
    assert_eq!(stage.asked(), []);
}

#[test]
fn the_workers_are_told_what_is_looked_at_so_that_they_read_no_more() {
    let mut stage = Stage::new();
    stage.tell(Update::Machines(Ok(three())));
    stage.click("Log");
    let watched: Vec<Watch> =
        stage.asked.try_iter().filter_map(|r| if let Request::Watch(watch) = r { Some(watch) } else { None }).collect();
    assert_eq!(watched.last(), Some(&Watch { selected: Some("Debian".into()), log: true, snapshots: false }));
    let files = [("serial.log".to_string(), "login:".to_string())].into();
    stage.tell(Update::Log(Log { name: "Debian".into(), files }));
    assert!(stage.shows("serial.log") && stage.shows("login:"));
}

/// A page's name, and the way to it.
type Page = (&'static str, fn(&mut Stage));

/// Every page of the manager.
fn pages() -> Vec<Page> {
    vec![
        ("empty", |stage| stage.tell(Update::Machines(Ok(vec![])))),
        ("library", |stage| {
            stage.tell(Update::Machines(Ok(three())));
            let image = egui::ColorImage::filled([320, 200], egui::Color32::from_rgb(20, 60, 110));
            stage.tell(Update::Picture(Picture { name: "Debian".into(), image: Some(image) }));
        }),
        ("hardware", |stage| {
            stage.tell(Update::Machines(Ok(three())));
            stage.click("Mint, stopped");
            stage.key(CTRL, Key::Comma);
        }),
        ("new", |stage| {
            stage.tell(Update::Machines(Ok(three())));
            stage.key(CTRL, Key::N);
            stage.manager().perform(super::Action::Picked(Purpose::Open, "/isos/grub.iso".into()));
            let medium = iso();
            let new = medium.suggest(&HOST);
            stage.tell(Update::Inspected("/isos/grub.iso".into(), Ok((medium, new))));
        }),
        ("new-more", |stage| {
            stage.tell(Update::Machines(Ok(three())));
            stage.key(CTRL, Key::N);
            stage.click("More settings");
        }),
        ("picker", |stage| {
            stage.tell(Update::Machines(Ok(three())));
            stage.tell(Update::NoDialog(Purpose::Open));
        }),
        ("keys", |stage| {
            stage.tell(Update::Machines(Ok(three())));
            stage.key(Modifiers::NONE, Key::F1);
        }),
        ("snapshots", snapshots::open),
        ("timeline", snapshots::open_timeline),
        ("timeline-plan", |stage| {
            snapshots::open_timeline(stage);
            stage.click("Timeline…");
        }),
        ("clone", |stage| {
            snapshots::open(stage);
            stage.click("Clone…: Before the upgrade");
        }),
        ("no-snapshots", |stage| {
            stage.tell(Update::Machines(Ok(three())));
            stage.click("Snapshots");
            stage.tell(Update::Snapshots(Snapshots::new("Debian".into(), Ok(vec![]))));
        }),
        ("restore", |stage| {
            snapshots::open(stage);
            stage.click("Restore…");
        }),
        ("take", |stage| {
            snapshots::open(stage);
            stage.key(CTRL, Key::T);
        }),
        ("jobs", |stage| {
            snapshots::open(stage);
            stage.tell(Update::Jobs(snapshots::jobs()));
        }),
        ("image", disks::open_image),
        ("jobs-list", |stage| {
            snapshots::open(stage);
            stage.tell(Update::Jobs(snapshots::jobs()));
            stage.manager().perform(super::Action::Command(super::Command::Jobs));
            stage.harness.run();
        }),
    ]
}

#[test]
fn an_idle_manager_draws_nothing() {
    for (page, open) in pages() {
        let mut stage = Stage::new();
        open(&mut stage);
        stage.harness.run();
        let delay = stage.harness.output().viewport_output[&egui::ViewportId::ROOT].repaint_delay;
        assert_eq!(delay, std::time::Duration::MAX, "{page} asks for another frame");
    }
}

#[test]
fn every_control_has_a_name() {
    for (page, open) in pages() {
        let mut stage = Stage::new();
        open(&mut stage);
        let mut nodes = Vec::new();
        all(stage.harness.root(), &mut nodes);
        let control = |role| {
            use Role::*;
            matches!(role, Button | TextInput | Slider | SpinButton | CheckBox | RadioButton | ComboBox | Image | Link)
        };
        let mut controls = 0;
        for node in nodes {
            let node = node.accesskit_node();
            if control(node.role()) {
                controls += 1;
                let name = node.label().unwrap_or_default();
                let readable = name.chars().any(char::is_alphanumeric);
                assert!(readable, "{page}: a {:?} at {:?} is called {name:?}", node.role(), node.bounding_box());
            }
        }
        assert!(controls > 3, "{page}: {controls} controls");
    }
}

#[test]
fn no_control_is_cut_off_at_any_text_size() {
    let window = Vec2::new(1024.0, 720.0);
    for scale in tokens::SCALES {
        for (page, open) in pages() {
            let mut stage = Stage::with(window, true);
            open(&mut stage);
            stage.tell(Update::Settings(Settings { appearance: Appearance::Dark, scale }));
            stage.harness.run();
            let mut nodes = Vec::new();
            all(stage.harness.root(), &mut nodes);
            for node in nodes {
                let role = node.accesskit_node().role();
                if !matches!(role, Role::Button | Role::TextInput | Role::Slider | Role::SpinButton | Role::CheckBox) {
                    continue;
                }
                let rect = node.rect();
                let name = node.accesskit_node().label().unwrap_or_default();
                assert!(
                    rect.left() >= 0.0 && rect.right() <= window.x + 0.5,
                    "{page} at {scale} %: {role:?} {name:?} is at {rect:?}, outside of the window"
                );
            }
        }
    }
}

#[test]
fn every_page_is_reached_and_left_by_the_keyboard_alone() {
    let mut stage = Stage::with_machines();
    // Tab goes round all controls and comes back: there is no trap.
    let mut seen = Vec::new();
    for _ in 0..60 {
        stage.key(Modifiers::NONE, Key::Tab);
        let mut nodes = Vec::new();
        all(stage.harness.root(), &mut nodes);
        let focused = nodes.iter().find(|node| node.accesskit_node().is_focused());
        let name = focused.and_then(|node| node.accesskit_node().label()).unwrap_or_default();
        seen.push(name);
    }
    for name in ["File", "New virtual machine…", "Search", "Mint, stopped", "More", "Hardware"] {
        assert!(seen.iter().filter(|n| *n == name).count() >= 1, "{name} is never reached: {seen:?}");
    }
    assert!(seen.iter().filter(|n| *n == "File").count() >= 2, "Tab does not come round: {seen:?}");
}

#[test]
fn pages_look_as_they_did() {
    let mut results = egui_kittest::SnapshotResults::new();
    for dark in [true, false] {
        for (page, open) in pages()
            .into_iter()
            .filter(|(page, _)| ["empty", "library", "new", "snapshots", "timeline", "jobs"].contains(page))
        {
            let mut stage = Stage::with(Vec2::new(960.0, 640.0), dark);
            open(&mut stage);
            stage.harness.remove_cursor();
            stage.harness.run();
            let theme = if dark { "dark" } else { "light" };
            results.add(stage.harness.try_snapshot(format!("manager-{page}-{theme}")));
        }
    }
}

#[test]
fn a_machine_is_started_without_saving_from_the_menu_and_says_so() {
    let mut stage = Stage::with_machines();
    stage.click("Mint, stopped");
    stage.click("Machine");
    stage.click("Start Without Saving");
    assert_eq!(stage.asked(), [Request::Power("Mint".into(), Power::StartUnsaved)]);
    assert!(!stage.shows("None: what happens now is gone when the machine ends"));
    let mut machines = three();
    for machine in &mut machines {
        machine.without_saving = machine.name == "Debian";
    }
    stage.tell(Update::Machines(Ok(machines)));
    stage.click("Debian, running");
    assert!(stage.shows("None: what happens now is gone when the machine ends"));
}
