//! The overlay as a person or a screen reader meets it: by names, not by places.

use std::time::Instant;

use egui_kittest::Harness;
use egui_kittest::kittest::{NodeT, Queryable};
use vmm_core::backend::display::Mode;
use vmm_core::vm::Lifecycle;

use super::actions::Action;
use super::dialogs::Dialog;
use super::overlay::{self, Ask, InputState, Model, Progress, Tab};
use super::serial::Terminal;
use super::timeline::Point;
use super::transform::ViewMode;
use super::{Loss, Saving};
use crate::library::Timestamp;
use crate::theme;

struct State {
    model: Model,
    terminal: Terminal,
    asks: Vec<Ask>,
    ready: bool,
}

fn model() -> Model {
    Model {
        title: "debian".into(),
        state: Lifecycle::Running,
        tab: Tab::Screen,
        terminal: None,
        mode: Some(Mode { width: 640, height: 480 }),
        scale: Some(1.0),
        input: InputState::Absolute,
        view: ViewMode::Scaled,
        follow: true,
        fullscreen: false,
        toolbar: false,
        drives: vec![Some("/isos/grub.iso".into())],
        problems: Vec::new(),
        notice: None,
        banner: None,
        dialog: None,
        can_keep_running: true,
        can_save: true,
        saving: None,
        graphics: "glow".into(),
    }
}

fn harness(width: f32, model: Model) -> Harness<'static, State> {
    let show = |ui: &mut egui::Ui, state: &mut State| {
        // The typefaces are there from the pass after the one that installs them.
        if !state.ready {
            state.ready = true;
            theme::install(ui.ctx());
            ui.ctx().request_repaint();
            return;
        }
        let pass = overlay::show(ui, &mut state.model, Some(&mut state.terminal), false, Instant::now());
        state.asks.extend(pass.asks);
    };
    let state = State { model, terminal: Terminal::default(), asks: Vec::new(), ready: false };
    Harness::builder().with_size([width, 600.0]).build_ui_state(show, state)
}

fn click(harness: &mut Harness<'_, State>, label: &str) {
    harness.get_by_label(label).click();
    harness.run();
}

#[test]
fn every_command_of_the_power_menu_is_reached_by_its_name() {
    for (label, action) in [
        ("Suspend", Action::Suspend),
        ("Shut down", Action::ShutDown),
        ("Reset…", Action::AskReset),
        ("Power off…", Action::AskPowerOff),
    ] {
        let mut harness = harness(1000.0, model());
        click(&mut harness, "Power menu");
        click(&mut harness, label);
        assert_eq!(harness.state().asks, [Ask::Do(action)]);
    }
}

#[test]
fn a_narrow_toolbar_keeps_its_names() {
    let mut harness = harness(520.0, model());
    for label in [
        "Pause",
        "Power menu",
        "Snapshot",
        "Timeline",
        "Fork",
        "Send keys menu",
        "CD menu",
        "Screenshot",
        "Screen",
        "Serial",
        "View menu",
        "Full screen",
    ] {
        harness.get_by_label(label);
    }
    click(&mut harness, "Pause");
    assert_eq!(harness.state().asks, [Ask::Do(Action::TogglePause)]);
}

#[test]
fn a_paused_machine_offers_to_resume_and_a_stopped_one_takes_no_commands() {
    let mut harness = harness(1000.0, Model { state: Lifecycle::Paused, ..model() });
    assert_eq!(harness.get_all_by_label("Resume").count(), 2);
    harness.state_mut().model.state = Lifecycle::Stopped;
    harness.run();
    for label in ["Pause", "Power menu", "Send keys menu"] {
        assert!(harness.get_by_label(label).accesskit_node().is_disabled(), "{label}");
    }
}

#[test]
fn a_full_screen_guest_has_the_whole_window_until_the_toolbar_is_called() {
    let mut harness = harness(1000.0, Model { fullscreen: true, ..model() });
    assert!(harness.query_by_label("Pause").is_none());
    harness.state_mut().model.toolbar = true;
    harness.run();
    harness.get_by_label("Leave full screen");
}

#[test]
fn a_confirmation_does_nothing_until_it_is_confirmed() {
    let mut harness = harness(1000.0, Model { dialog: Some(Dialog::power_off()), ..model() });
    click(&mut harness, "Cancel");
    assert_eq!(harness.state().asks, [Ask::CloseDialog]);
    assert!(harness.state().model.dialog.is_none());
    harness.state_mut().model.dialog = Some(Dialog::power_off());
    harness.run();
    click(&mut harness, "Power off");
    assert_eq!(harness.state().asks.last(), Some(&Ask::Do(Action::PowerOff)));
}

#[test]
fn what_could_not_be_kept_first_is_lost_only_after_another_question() {
    let dialog = Dialog::lose_anyway(Loss::Reset, "the host has no space left".into());
    let mut harness = harness(1000.0, Model { dialog: Some(dialog), ..model() });
    harness.get_by_label("What it is now could not be kept on its timeline first: the host has no space left.");
    click(&mut harness, "Reset all the same");
    assert_eq!(harness.state().asks, [Ask::Do(Action::LoseAnyway(Loss::Reset))]);
    assert!(harness.state().model.dialog.is_none());
}

#[test]
fn escape_leaves_the_close_dialog() {
    let mut harness = harness(1000.0, Model { dialog: Some(Dialog::close()), ..model() });
    harness.get_by_label("Keep running");
    harness.key_press(egui::Key::Escape);
    harness.run();
    assert!(harness.state().model.dialog.is_none());
    assert!(harness.state().asks.is_empty());
}

#[test]
fn keep_running_is_offered_only_where_the_window_can_be_asked_for_again() {
    let no_way_back = Model { dialog: Some(Dialog::close()), can_keep_running: false, ..model() };
    let harness = harness(1000.0, no_way_back);
    assert!(harness.query_by_label("Keep running").is_none());
}

#[test]
fn a_snapshot_is_named_in_a_dialog_and_taken_with_enter() {
    let mut harness = harness(1200.0, Model { dialog: Some(Dialog::snapshot()), ..model() });
    harness.run();
    assert!(harness.get_by_label_contains("Name").accesskit_node().is_focused());
    harness.key_press_modifiers(egui::Modifiers::COMMAND, egui::Key::A);
    harness.event(egui::Event::Text("  ".into()));
    harness.run();
    assert!(harness.get_by_label("Take snapshot").accesskit_node().is_disabled());
    harness.event(egui::Event::Text("before the storm".into()));
    harness.run();
    harness.key_press(egui::Key::Enter);
    harness.run();
    assert_eq!(harness.state().asks, [Ask::TakeSnapshot("before the storm".into(), String::new())]);
    assert!(harness.state().model.dialog.is_none());
}

#[test]
fn what_takes_time_is_told_with_a_way_to_give_it_up_and_nothing_else_begins_meanwhile() {
    let saving = Progress { what: "Suspending".into(), share: Some(0.5), cancelling: false, can_cancel: true };
    let mut harness = harness(1200.0, Model { saving: Some(saving), ..model() });
    harness.get_by_label("Suspending, 50 %");
    assert!(harness.get_by_label("Snapshot").accesskit_node().is_disabled());
    click(&mut harness, "Cancel");
    assert_eq!(harness.state().asks, [Ask::Do(Action::Cancel)]);
    if let Some(saving) = &mut harness.state_mut().model.saving {
        saving.cancelling = true;
    }
    harness.run();
    harness.get_by_label("Suspending: cancelling…");
    assert!(harness.get_by_label("Cancel").accesskit_node().is_disabled());
    // What is not kept can't be saved.
    harness.state_mut().model.saving = None;
    harness.state_mut().model.can_save = false;
    harness.run();
    assert!(harness.get_by_label("Fork").accesskit_node().is_disabled());
}

#[test]
fn a_disc_image_needs_its_whole_path() {
    let mut harness = harness(1000.0, Model { dialog: Some(Dialog::medium(0)), ..model() });
    assert!(harness.get_by_label("Insert").accesskit_node().is_disabled());
    if let Some(dialog) = &mut harness.state_mut().model.dialog {
        dialog.picked(0, "/isos/debian.iso".into());
    }
    harness.run();
    click(&mut harness, "Insert");
    assert_eq!(harness.state().asks, [Ask::Insert(0, "/isos/debian.iso".into())]);
}

#[test]
fn each_problem_is_shown_and_dismissed_by_itself() {
    let problems = vec!["disk 0: the host's disk is full".to_string(), "net 1: tap0 is gone".to_string()];
    let mut harness = harness(1000.0, Model { problems, ..model() });
    harness.get_by_label("net 1: tap0 is gone");
    harness.get_all_by_label("Dismiss").next().expect("a button").click();
    harness.run();
    assert!(matches!(harness.state().asks[..], [Ask::DismissProblem(_)]));
}

fn serial(output: &[u8]) -> Harness<'static, State> {
    let mut harness = harness(1000.0, Model { tab: Tab::Serial, ..model() });
    harness.state_mut().terminal.feed(output);
    harness.run();
    harness
}

#[test]
fn the_tabs_are_offered_where_there_is_a_serial_port() {
    let mut harness = harness(1000.0, model());
    click(&mut harness, "Serial");
    assert_eq!(harness.state().asks, [Ask::Do(Action::ShowSerial)]);
    harness.state_mut().model.tab = Tab::Serial;
    harness.run();
    click(&mut harness, "Screen");
    assert_eq!(harness.state().asks.last(), Some(&Ask::Do(Action::ShowScreen)));
    assert_eq!(harness.state().model.terminal, Some(harness.state().terminal.size()));
}

#[test]
fn a_screen_reader_reads_the_terminal_and_it_has_the_keyboard() {
    let harness = serial(b"\x1b[1;31mlogin:\x1b[m \r\nnext");
    let terminal = harness.get_by_label("Serial terminal");
    assert!(terminal.accesskit_node().is_focused());
    let text = terminal.accesskit_node().value().unwrap_or_default();
    assert!(text.starts_with("login:\nnext"), "{text:?}");
    // Which means that the overlay does not want it.
    assert!(!overlay::wants_keyboard(&harness.ctx, &harness.state().model));
    harness.get_by_label("Pause").focus();
}

#[test]
fn a_control_of_the_toolbar_takes_the_keyboard_from_the_terminal() {
    let mut harness = serial(b"");
    harness.get_by_label("Pause").focus();
    harness.run();
    assert!(overlay::wants_keyboard(&harness.ctx, &harness.state().model));
    harness.key_press(egui::Key::Escape);
    harness.run();
    assert!(!overlay::wants_keyboard(&harness.ctx, &harness.state().model));
}

#[test]
fn what_the_pointer_is_drawn_over_is_selected_and_copied_from_the_menu() {
    let mut harness = serial(b"one two three");
    let terminal = harness.get_by_label("Serial terminal").rect();
    let cell = harness.state().terminal.size();
    let at = |column: f32| {
        let (width, height) = (terminal.width() / cell.columns as f32, terminal.height() / cell.lines as f32);
        terminal.min + egui::vec2(column * width, 0.5 * height)
    };
    let (from, to) = (at(4.2), at(6.8));
    let button =
        |pos, pressed, button| egui::Event::PointerButton { pos, button, pressed, modifiers: Default::default() };
    harness.event(egui::Event::PointerMoved(from));
    harness.event(button(from, true, egui::PointerButton::Primary));
    harness.run();
    harness.event(egui::Event::PointerMoved(to));
    harness.run();
    harness.event(button(to, false, egui::PointerButton::Primary));
    harness.run();
    assert_eq!(harness.state().terminal.selected().as_deref(), Some("two"));
    harness.event(button(to, true, egui::PointerButton::Secondary));
    harness.event(button(to, false, egui::PointerButton::Secondary));
    harness.run();
    click(&mut harness, "Copy");
    assert_eq!(harness.state().asks, [Ask::Do(Action::Copy)]);
    assert_eq!(harness.state().terminal.selected().as_deref(), Some("two"), "the menu leaves the selection");
}

#[test]
fn an_idle_terminal_asks_for_no_drawing_and_a_small_window_keeps_80_by_25() {
    let mut harness = serial(b"\x1b[5mblink\x1b[m");
    harness.run();
    assert!(!harness.ctx.has_requested_repaint(), "an idle terminal draws itself");
    for (width, height) in [(520.0, 260.0), (1000.0, 600.0), (1900.0, 1000.0)] {
        harness.set_size(egui::vec2(width, height));
        harness.run();
        let size = harness.state().terminal.size();
        assert!(size.columns >= 80 && size.lines >= 25, "{size:?}");
    }
    let size = harness.state().terminal.size();
    assert!(size.columns > 150 && size.lines > 40, "{size:?}");
}

fn past(count: u64) -> Vec<Point> {
    let picture = |n: u64| (n != 1).then(|| egui::ColorImage::filled([32, 20], egui::Color32::from_gray(n as u8 * 60)));
    (0..count).map(|n| Point { id: format!("p{n}"), taken: Timestamp(1000 + n * 600), picture: picture(n) }).collect()
}

#[test]
fn the_timeline_goes_back_to_the_point_that_its_slider_is_at() {
    let mut harness = harness(1000.0, Model { dialog: Some(Dialog::timeline(past(3))), ..model() });
    harness.run();
    // The newest first; the arrow keys move.
    harness.key_press(egui::Key::ArrowLeft);
    harness.run();
    assert!(harness.query_by_label("The screen was off").is_some());
    harness.get_by_label("Go back").click();
    harness.run();
    assert_eq!(harness.state().asks, [Ask::Past(Saving::GoBack("p1".into()))]);
    harness.state_mut().asks.clear();
    harness.state_mut().model.dialog = Some(Dialog::timeline(past(3)));
    harness.run();
    harness.get_by_label("Open as a copy").click();
    harness.run();
    assert_eq!(harness.state().asks, [Ask::Past(Saving::Copy("p2".into()))]);
    harness.state_mut().asks.clear();
    harness.state_mut().model.dialog = Some(Dialog::timeline(vec![]));
    harness.run();
    harness.get_by_label("Keep a timeline").click();
    harness.run();
    assert_eq!(harness.state().asks, [Ask::Past(Saving::KeepTimeline)]);
}
