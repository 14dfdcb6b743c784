//! Everything a person can ask of the console, in one table: the toolbar, the menus, the chords and the keys' list all
//! read it.

use egui_phosphor::regular as icon;
use vmm_core::backend::input::InputEvent;

use super::Loss;
use super::keys::{Stroked, key};

/// What a person asks of the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Stops the CPUs, or lets them go on.
    TogglePause,
    /// Presses the power button.
    ShutDown,
    /// Asks whether to pull the plug.
    AskPowerOff,
    /// Asks whether to press the reset button.
    AskReset,
    /// Pulls the plug.
    PowerOff,
    /// Presses the reset button.
    Reset,
    /// Does either though its timeline could not keep what the machine is now.
    LoseAnyway(Loss),
    /// Sends one of [`COMBINATIONS`].
    SendKeys(usize),
    /// Types the clipboard's text.
    TypeClipboard,
    /// Writes the guest's screen to a file.
    Screenshot,
    /// Scaled or 1:1.
    ToggleScaled,
    /// Offers the window's size to the guest, or no longer.
    ToggleFollow,
    /// Makes the window as large as the guest's screen.
    FitWindow,
    /// Over the whole screen, or not.
    ToggleFullscreen,
    /// Shows the toolbar in full screen, and gives it the keyboard.
    ShowToolbar,
    /// Shows the guest's screen.
    ShowScreen,
    /// Shows the machine's serial port, as a terminal.
    ShowSerial,
    /// The terminal's selected text to the clipboard.
    Copy,
    /// The clipboard's text to the terminal.
    Paste,
    /// Lists the host key's chords.
    ShowKeys,
    /// Keyboard and pointer to the guest alone, or back.
    ToggleCapture,
    /// Asks for a disc image for a drive.
    ChooseMedium(usize),
    /// Takes the disc out of a drive.
    Eject(usize),
    /// Closes the window, asking first while the machine runs.
    Close,
    /// Closes the window; the machine goes on.
    KeepRunning,
    /// Saves the machine and ends it; the window closes with it.
    Suspend,
    /// Asks what a snapshot is to be called.
    AskSnapshot,
    /// Makes a machine that goes on from this moment as well.
    Fork,
    /// Looks at the machine's past.
    LookBack,
    /// Gives up what takes time.
    Cancel,
}

impl Action {
    /// What a person reads.
    pub fn label(self) -> &'static str {
        match self {
            Action::TogglePause => "Pause or resume",
            Action::ShutDown => "Shut down",
            Action::AskPowerOff | Action::PowerOff | Action::LoseAnyway(Loss::PowerOff) => "Power off",
            Action::AskReset | Action::Reset | Action::LoseAnyway(Loss::Reset) => "Reset",
            Action::SendKeys(n) => COMBINATIONS.get(n).map_or("Send keys", |c| c.label),
            Action::TypeClipboard => "Type the clipboard",
            Action::Screenshot => "Take a screenshot",
            Action::ToggleScaled => "Scaled or 1:1",
            Action::ToggleFollow => "Resize guest with window",
            Action::FitWindow => "Fit window to guest",
            Action::ToggleFullscreen => "Full screen",
            Action::ShowToolbar => "Show the toolbar",
            Action::ShowScreen => "Show the screen",
            Action::ShowSerial => "Show the serial terminal",
            Action::Copy => "Copy",
            Action::Paste => "Paste",
            Action::ShowKeys => "All keys",
            Action::ToggleCapture => "Capture or release input",
            Action::ChooseMedium(_) => "Insert disc image",
            Action::Eject(_) => "Eject",
            Action::Close => "Close",
            Action::KeepRunning => "Keep running",
            Action::Suspend => "Suspend",
            Action::AskSnapshot => "Take a snapshot",
            Action::Fork => "Fork",
            Action::LookBack => "Timeline",
            Action::Cancel => "Cancel",
        }
    }

    /// Its picture, a character of the icon font.
    pub fn icon(self) -> &'static str {
        match self {
            Action::TogglePause => icon::PAUSE,
            Action::ShutDown | Action::AskPowerOff | Action::PowerOff | Action::LoseAnyway(Loss::PowerOff) => {
                icon::POWER
            }
            Action::AskReset | Action::Reset | Action::LoseAnyway(Loss::Reset) => icon::ARROW_CLOCKWISE,
            Action::SendKeys(_) | Action::ShowKeys => icon::KEYBOARD,
            Action::TypeClipboard | Action::Paste => icon::CLIPBOARD_TEXT,
            Action::ShowScreen => icon::MONITOR,
            Action::ShowSerial => icon::TERMINAL_WINDOW,
            Action::Copy => icon::COPY,
            Action::Screenshot => icon::CAMERA,
            Action::ToggleScaled => icon::FRAME_CORNERS,
            Action::ToggleFollow | Action::FitWindow => icon::ARROWS_OUT_CARDINAL,
            Action::ToggleFullscreen => icon::CORNERS_OUT,
            Action::ShowToolbar => icon::CARET_DOWN,
            Action::ToggleCapture => icon::MOUSE,
            Action::ChooseMedium(_) => icon::DISC,
            Action::Eject(_) => icon::EJECT,
            Action::AskSnapshot => icon::BOOKMARK_SIMPLE,
            Action::Fork => icon::GIT_FORK,
            Action::LookBack => icon::CLOCK_COUNTER_CLOCKWISE,
            Action::Close | Action::Cancel => icon::X,
            Action::KeepRunning => icon::PLAY,
            Action::Suspend => icon::MOON,
        }
    }

    /// Its chord with the host key, as a person reads it.
    pub fn chord(self) -> Option<&'static str> {
        CHORDS.iter().find(|c| c.action == self).map(|c| c.name)
    }
}

/// A key that means something with the host key.
pub struct Chord {
    /// The key.
    pub stroke: Stroked,
    /// What the person reads.
    pub name: &'static str,
    /// What it does.
    pub action: Action,
}

const fn letter(c: char, name: &'static str, action: Action) -> Chord {
    Chord { stroke: Stroked::Character(c), name, action }
}

/// The host key's chords, in the order the list shows them.
pub const CHORDS: [Chord; 17] = [
    letter('f', "Host+F", Action::ToggleFullscreen),
    letter('c', "Host+C", Action::ToggleScaled),
    letter('1', "Host+1", Action::ShowScreen),
    letter('2', "Host+2", Action::ShowSerial),
    letter('t', "Host+T", Action::AskSnapshot),
    letter('k', "Host+K", Action::Fork),
    Chord { stroke: Stroked::Code(key::LEFT), name: "Host+Left", action: Action::LookBack },
    Chord { stroke: Stroked::Code(key::RIGHT), name: "Host+Right", action: Action::LookBack },
    letter('p', "Host+P", Action::TogglePause),
    letter('h', "Host+H", Action::ShutDown),
    letter('r', "Host+R", Action::AskReset),
    letter('q', "Host+Q", Action::Close),
    letter('v', "Host+V", Action::TypeClipboard),
    letter('e', "Host+E", Action::Screenshot),
    Chord { stroke: Stroked::Code(key::DELETE), name: "Host+Del", action: Action::SendKeys(CTRL_ALT_DEL) },
    Chord { stroke: Stroked::Code(key::HOME), name: "Host+Home", action: Action::ShowToolbar },
    letter('?', "Host+?", Action::ShowKeys),
];

/// The action of a chord.
pub fn of_chord(stroke: Stroked) -> Option<Action> {
    // The question mark of a US keyboard needs no Shift.
    let stroke = if stroke == Stroked::Character('/') { Stroked::Character('?') } else { stroke };
    CHORDS.iter().find(|c| c.stroke == stroke).map(|c| c.action)
}

/// Keys pressed together.
pub struct Combination {
    /// What a person reads.
    pub label: &'static str,
    /// In the order they go down.
    pub keys: &'static [u16],
}

/// Ctrl+Alt+Del's place in [`COMBINATIONS`].
pub const CTRL_ALT_DEL: usize = 0;
/// The place of Ctrl+Alt+F1 in [`COMBINATIONS`]; F2 to F12 follow.
pub const CTRL_ALT_F1: usize = 7;

const fn combination(label: &'static str, keys: &'static [u16]) -> Combination {
    Combination { label, keys }
}

/// What the Send keys menu offers: combinations that the host keeps for itself.
pub const COMBINATIONS: [Combination; 19] = [
    combination("Ctrl+Alt+Del", &[key::LEFT_CTRL, key::LEFT_ALT, key::DELETE]),
    combination("Ctrl+Alt+Backspace", &[key::LEFT_CTRL, key::LEFT_ALT, key::BACKSPACE]),
    combination("Alt+Tab", &[key::LEFT_ALT, key::TAB]),
    combination("Alt+F4", &[key::LEFT_ALT, key::F4]),
    combination("Super", &[key::LEFT_META]),
    combination("Print", &[key::SYSRQ]),
    combination("Alt+SysRq", &[key::LEFT_ALT, key::SYSRQ]),
    combination("Ctrl+Alt+F1", &[key::LEFT_CTRL, key::LEFT_ALT, key::F1]),
    combination("Ctrl+Alt+F2", &[key::LEFT_CTRL, key::LEFT_ALT, key::F1 + 1]),
    combination("Ctrl+Alt+F3", &[key::LEFT_CTRL, key::LEFT_ALT, key::F1 + 2]),
    combination("Ctrl+Alt+F4", &[key::LEFT_CTRL, key::LEFT_ALT, key::F1 + 3]),
    combination("Ctrl+Alt+F5", &[key::LEFT_CTRL, key::LEFT_ALT, key::F1 + 4]),
    combination("Ctrl+Alt+F6", &[key::LEFT_CTRL, key::LEFT_ALT, key::F1 + 5]),
    combination("Ctrl+Alt+F7", &[key::LEFT_CTRL, key::LEFT_ALT, key::F1 + 6]),
    combination("Ctrl+Alt+F8", &[key::LEFT_CTRL, key::LEFT_ALT, key::F1 + 7]),
    combination("Ctrl+Alt+F9", &[key::LEFT_CTRL, key::LEFT_ALT, key::F1 + 8]),
    combination("Ctrl+Alt+F10", &[key::LEFT_CTRL, key::LEFT_ALT, key::F1 + 9]),
    combination("Ctrl+Alt+F11", &[key::LEFT_CTRL, key::LEFT_ALT, key::F11]),
    combination("Ctrl+Alt+F12", &[key::LEFT_CTRL, key::LEFT_ALT, key::F11 + 1]),
];

impl Combination {
    /// Its reports: the keys go down one by one and up in the opposite order.
    pub fn reports(&self) -> impl Iterator<Item = InputEvent> + '_ {
        let down = self.keys.iter().map(|&k| InputEvent::key(k, true));
        down.chain(self.keys.iter().rev().map(|&k| InputEvent::key(k, false)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_chords_share_a_key() {
        for (i, chord) in CHORDS.iter().enumerate() {
            assert!(CHORDS[..i].iter().all(|c| c.stroke != chord.stroke), "{} is taken", chord.name);
        }
    }

    #[test]
    fn every_combination_lets_go_of_what_it_presses() {
        for combination in &COMBINATIONS {
            let mut down = Vec::new();
            for event in combination.reports() {
                if event.value == 1 {
                    down.push(event.code);
                } else {
                    assert_eq!(down.pop(), Some(event.code), "{}", combination.label);
                }
            }
            assert!(down.is_empty());
        }
    }

    #[test]
    fn the_named_places_in_the_table_are_right() {
        assert_eq!(COMBINATIONS[CTRL_ALT_DEL].label, "Ctrl+Alt+Del");
        assert_eq!(COMBINATIONS[CTRL_ALT_F1].label, "Ctrl+Alt+F1");
        assert_eq!(COMBINATIONS[CTRL_ALT_F1 + 11].keys[2], 88);
    }

    #[test]
    fn the_question_mark_needs_no_shift() {
        assert_eq!(of_chord(Stroked::Character('/')), Some(Action::ShowKeys));
        assert_eq!(of_chord(Stroked::Character('x')), None);
    }
}
