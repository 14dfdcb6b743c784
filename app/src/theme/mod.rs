//! How Orangery looks: design tokens, type, icons and the widgets that every window shares.
//!
//! [`install`] is called once for each egui context, by the windows and by every test of a view.

pub mod icon;
mod state;
mod style;
pub mod tokens;
mod widgets;

pub use state::Shape;
pub use style::{Appearance, install, semibold, set_appearance};
pub use tokens::{Tokens, size, time};
pub use widgets::{Amount, Note, Tone, UiExt, focus_ring, text_edit};

/// The tokens of the theme that `visuals` belong to.
pub fn tokens(visuals: &egui::Visuals) -> &'static Tokens {
    if visuals.dark_mode { &tokens::DARK } else { &tokens::LIGHT }
}
