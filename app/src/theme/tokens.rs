//! Design tokens: every colour, distance, size and duration of the windows. Nothing outside `theme` names one.

use egui::Color32;

/// Distances and sizes, points. Distances are steps of a 4-point grid.
pub mod size {
    /// Between things that belong together.
    pub const GAP_SMALL: f32 = 4.0;
    /// Between neighbours.
    pub const GAP: f32 = 8.0;
    /// Between cards.
    pub const GAP_CARDS: f32 = 12.0;
    /// Between groups, and the padding inside a card.
    pub const GAP_LARGE: f32 = 16.0;
    /// Around a page, and between sections.
    pub const GAP_PAGE: f32 = 24.0;
    /// Corners of buttons and fields.
    pub const RADIUS: u8 = 6;
    /// Corners of a guest's picture and its frame: hardly round, because a guest's first letter is in the corner.
    pub const RADIUS_PICTURE: u8 = 2;
    /// Corners of cards, pictures and windows.
    pub const RADIUS_LARGE: u8 = 10;
    /// The height of a button or field.
    pub const CONTROL: f32 = 30.0;
    /// The height of a tab.
    pub const TAB: f32 = 34.0;
    /// Small print.
    pub const TEXT_SMALL: f32 = 12.0;
    /// Body text.
    pub const TEXT: f32 = 14.0;
    /// A section's title.
    pub const TEXT_SECTION: f32 = 15.0;
    /// A page's title.
    pub const TEXT_TITLE: f32 = 22.0;
    /// An icon that stands for a thing rather than sits in a line of text.
    pub const ICON_LARGE: f32 = 24.0;
    /// The icon of a big card.
    pub const ICON_HERO: f32 = 40.0;
    /// The library's width when nobody has changed it, and its limits.
    pub const LIBRARY: f32 = 268.0;
    /// See [`LIBRARY`].
    pub const LIBRARY_MIN: f32 = 200.0;
    /// See [`LIBRARY`].
    pub const LIBRARY_MAX: f32 = 420.0;
    /// A picture in a library row (8:5).
    pub const ROW_PICTURE: egui::Vec2 = egui::vec2(64.0, 40.0);
    /// The widest a page of rows gets before lines become too long to read.
    pub const PAGE: f32 = 720.0;
    /// Below this a page puts side-by-side things under one another.
    pub const NARROW: f32 = 620.0;
    /// The label column of a form.
    pub const LABEL: f32 = 112.0;
    /// The name column of facts.
    pub const FACT: f32 = 88.0;
    /// A line of body text.
    pub const LINE_HEIGHT: f32 = 18.0;
    /// The widest a text field gets.
    pub const FIELD: f32 = 420.0;
    /// A text field does not share its line when that would make it narrower than this.
    pub const FIELD_MIN: f32 = 150.0;
    /// A slider's rail.
    pub const SLIDER: f32 = 220.0;
    /// A slider's height; its handle is four fifths of it.
    pub const SLIDER_HEIGHT: f32 = 20.0;
    /// The number beside a slider.
    pub const NUMBER: f32 = 92.0;
    /// One of the three big cards.
    pub const CARD: egui::Vec2 = egui::vec2(232.0, 196.0);
    /// Its height where the three stand under one another.
    pub const CARD_WIDE: f32 = 96.0;
    /// The tallest the live picture of the overview gets.
    pub const PICTURE_HEIGHT: f32 = 360.0;
    /// The room that a *Choose…* button takes, with its gap.
    pub const CHOOSE: f32 = 122.0;
    /// The room that a *Read only* box takes, with its gap.
    pub const CHECK: f32 = 104.0;
    /// How thick a meter is.
    pub const METER: f32 = 6.0;
    /// A picture on the timeline (8:5).
    pub const CHECKPOINT: egui::Vec2 = egui::vec2(96.0, 60.0);
    /// A lane of the snapshots' tree.
    pub const LANE: f32 = 22.0;
    /// A snapshot in it, from its middle.
    pub const DOT: f32 = 5.0;
    /// The present in it.
    pub const DOT_HERE: f32 = 7.0;
    /// The widest that the snapshot which is looked at gets beside the tree.
    pub const DETAILS: f32 = 360.0;
    /// The longest that the bar of a job gets.
    pub const PROGRESS: f32 = 220.0;
    /// How far a job is, in words.
    pub const PERCENT: f32 = 84.0;
    /// The width of a menu's rows.
    pub const MENU: f32 = 240.0;
    /// A dialog's width.
    pub const DIALOG: f32 = 460.0;
    /// The file picker's width.
    pub const PICKER: f32 = 640.0;
    /// The height of the file picker's list.
    pub const PICKER_LIST: f32 = 320.0;
    /// A notice at the window's foot.
    pub const TOAST: f32 = 420.0;
    /// The first size of the manager's window.
    pub const WINDOW: egui::Vec2 = egui::vec2(1120.0, 740.0);
    /// The least size of the manager's window.
    pub const WINDOW_MIN: egui::Vec2 = egui::vec2(560.0, 400.0);
    /// Lines.
    pub const LINE: f32 = 1.0;
    /// The ring around what has the keyboard.
    pub const RING: f32 = 2.0;
}

/// Seconds.
pub mod time {
    /// How long a notice stays.
    pub const TOAST: f64 = 8.0;
    /// How long a notice with *Undo* stays.
    pub const TOAST_UNDO: f64 = 20.0;
    /// One step of a spinner.
    pub const SPINNER_STEP: f64 = 0.1;
}

/// The steps of the text size, per cent.
pub const SCALES: [u32; 6] = [100, 115, 130, 150, 175, 200];

/// The colours of one theme.
#[derive(Debug)]
pub struct Tokens {
    /// Behind everything.
    pub window: Color32,
    /// The library and the bars.
    pub panel: Color32,
    /// Cards, menus and dialogs.
    pub surface: Color32,
    /// A card or row under the pointer.
    pub surface_hover: Color32,
    /// Text fields.
    pub field: Color32,
    /// Buttons.
    pub button: Color32,
    /// Buttons under the pointer.
    pub button_hover: Color32,
    /// Buttons pressed.
    pub button_active: Color32,
    /// Lines between things.
    pub border: Color32,
    /// Lines around controls.
    pub border_strong: Color32,
    /// Text.
    pub text: Color32,
    /// Text of less weight. At least 4.5:1 on every surface.
    pub text_muted: Color32,
    /// The one accent.
    pub accent: Color32,
    /// The accent under the pointer.
    pub accent_hover: Color32,
    /// Text on the accent.
    pub on_accent: Color32,
    /// The accent as text.
    pub accent_text: Color32,
    /// Behind what is selected.
    pub selection: Color32,
    /// Running, and success.
    pub running: Color32,
    /// Paused, and warnings.
    pub paused: Color32,
    /// Suspended.
    pub suspended: Color32,
    /// Stopped.
    pub stopped: Color32,
    /// Errors, and what destroys.
    pub error: Color32,
    /// Behind an error.
    pub error_surface: Color32,
    /// Behind a warning.
    pub warning_surface: Color32,
    /// Behind good news and neutral notices.
    pub info_surface: Color32,
    /// Behind a guest's picture.
    pub screen: Color32,
    /// On a guest's screen that shows nothing.
    pub on_screen: Color32,
    /// The sign on a small picture that shows nothing.
    pub screen_off: Color32,
    /// Over the window, behind a dialog.
    pub backdrop: Color32,
    /// Under menus and dialogs.
    pub shadow: Color32,
}

const fn rgb(hex: u32) -> Color32 {
    Color32::from_rgb((hex >> 16) as u8, (hex >> 8) as u8, hex as u8)
}

/// The dark theme.
pub static DARK: Tokens = Tokens {
    window: rgb(0x17181a),
    panel: rgb(0x1e1f22),
    surface: rgb(0x26282c),
    surface_hover: rgb(0x2f3136),
    field: rgb(0x131416),
    button: rgb(0x34363b),
    button_hover: rgb(0x3f4247),
    button_active: rgb(0x2b2d31),
    border: rgb(0x33353a),
    border_strong: rgb(0x50535a),
    text: rgb(0xececee),
    text_muted: rgb(0xabadb3),
    accent: rgb(0xf08c2e),
    accent_hover: rgb(0xffa04a),
    on_accent: rgb(0x1d1206),
    accent_text: rgb(0xffa958),
    selection: rgb(0x4a3520),
    running: rgb(0x57c785),
    paused: rgb(0xf2c14e),
    suspended: rgb(0x90a9c4),
    stopped: rgb(0xa8aab1),
    error: rgb(0xff7b72),
    error_surface: rgb(0x3a2022),
    warning_surface: rgb(0x362d18),
    info_surface: rgb(0x1f2d28),
    screen: rgb(0x0b0c0d),
    on_screen: rgb(0x8d9096),
    screen_off: rgb(0x4a4d52),
    backdrop: Color32::from_rgba_premultiplied(0, 0, 0, 120),
    shadow: Color32::from_rgba_premultiplied(0, 0, 0, 110),
};

/// The light theme.
pub static LIGHT: Tokens = Tokens {
    window: rgb(0xf7f6f4),
    panel: rgb(0xeeedea),
    surface: rgb(0xffffff),
    surface_hover: rgb(0xf4f2ef),
    field: rgb(0xffffff),
    button: rgb(0xffffff),
    button_hover: rgb(0xf3f1ee),
    button_active: rgb(0xe7e4df),
    border: rgb(0xdcdad5),
    border_strong: rgb(0xb4b1aa),
    text: rgb(0x1f2023),
    text_muted: rgb(0x5d5f66),
    accent: rgb(0xb8560b),
    accent_hover: rgb(0xa04806),
    on_accent: rgb(0xffffff),
    accent_text: rgb(0xa34a06),
    selection: rgb(0xf8dfc4),
    running: rgb(0x176b39),
    paused: rgb(0x815a00),
    suspended: rgb(0x3f5a77),
    stopped: rgb(0x5d5f66),
    error: rgb(0xa8201a),
    error_surface: rgb(0xfdeceb),
    warning_surface: rgb(0xfdf3dc),
    info_surface: rgb(0xe6f4ec),
    screen: rgb(0x1b1c1e),
    on_screen: rgb(0xa2a5ab),
    screen_off: rgb(0x5c5f65),
    backdrop: Color32::from_rgba_premultiplied(0, 0, 0, 90),
    shadow: Color32::from_rgba_premultiplied(0, 0, 0, 36),
};

/// The 16 colours of a terminal (ECMA-48 §8.3.117, and their bright versions), on [`DARK`]'s screen.
pub static ANSI: [Color32; 16] = [
    rgb(0x16181b),
    rgb(0xd9574f),
    rgb(0x4fae6d),
    rgb(0xc9a227),
    rgb(0x5a92e0),
    rgb(0xb26fd0),
    rgb(0x3aa6b0),
    rgb(0xc6c9ce),
    rgb(0x74787f),
    rgb(0xff8078),
    rgb(0x6fd98f),
    rgb(0xf2c94e),
    rgb(0x82b4f7),
    rgb(0xdb9aea),
    rgb(0x63d2dc),
    rgb(0xffffff),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance (WCAG 2.2).
    fn luminance(color: Color32) -> f32 {
        let linear = |c: u8| {
            let c = f32::from(c) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(color.r()) + 0.7152 * linear(color.g()) + 0.0722 * linear(color.b())
    }

    fn contrast(a: Color32, b: Color32) -> f32 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn a_terminals_colours_read_at_4_5_to_1_on_its_screen() {
        for (n, &color) in ANSI.iter().enumerate().filter(|(n, _)| *n != 0 && *n != 8) {
            let ratio = contrast(color, DARK.screen);
            assert!(ratio >= 4.5, "colour {n} is {ratio:.2}:1");
        }
        assert!(contrast(ANSI[8], DARK.screen) >= 3.0);
        assert!(contrast(DARK.text, DARK.selection) >= 4.5);
    }

    #[test]
    fn all_text_reads_at_4_5_to_1_on_every_surface_it_is_put_on() {
        for (name, t) in [("dark", &DARK), ("light", &LIGHT)] {
            let surfaces = [t.window, t.panel, t.surface, t.surface_hover, t.field, t.selection];
            let words = [t.text, t.text_muted, t.accent_text, t.running, t.paused, t.suspended, t.stopped, t.error];
            for (i, &word) in words.iter().enumerate() {
                for (j, &surface) in surfaces.iter().enumerate() {
                    // States and muted words sit on a selected row too; the accent as text does not.
                    let ratio = contrast(word, surface);
                    assert!(ratio >= 4.5, "{name}: word {i} on surface {j} is {ratio:.2}:1");
                }
            }
            assert!(contrast(t.on_accent, t.accent) >= 4.5, "{name}: on accent");
            assert!(contrast(t.on_accent, t.accent_hover) >= 4.5, "{name}: on accent, hovered");
            for (word, surface) in [
                (t.text, t.error_surface),
                (t.text, t.warning_surface),
                (t.text, t.info_surface),
                (t.text_muted, t.error_surface),
                (t.text_muted, t.warning_surface),
                (t.error, t.error_surface),
                (t.paused, t.warning_surface),
                (t.running, t.info_surface),
                (t.on_screen, t.screen),
                (t.text, t.button),
                (t.text, t.button_hover),
                (t.error, t.button),
            ] {
                let ratio = contrast(word, surface);
                assert!(ratio >= 4.5, "{name}: {word:?} on {surface:?} is {ratio:.2}:1");
            }
        }
    }
}
