//! What the manager keeps for itself, and what it learns from the desktop.

use std::io;
use std::path::PathBuf;

use egui::Theme;
use zbus::blocking::{Connection, Proxy};
use zbus::zvariant::{OwnedValue, Value};

use super::action::Settings;
use crate::library::files::write_atomic;
use crate::theme::tokens::SCALES;

/// `orangery/manager.toml` in the person's configuration folder.
fn file() -> Option<PathBuf> {
    let absolute = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    config.map(|config| config.join("orangery/manager.toml"))
}

/// The kept settings. A file that is missing or makes no sense counts as none: the next change replaces it.
pub fn load() -> Option<Settings> {
    let text = std::fs::read_to_string(file()?).ok()?;
    let mut settings: Settings = toml::from_str(&text).ok()?;
    if !SCALES.contains(&settings.scale) {
        settings.scale = Settings::default().scale;
    }
    Some(settings)
}

/// Keeps the settings.
///
/// # Errors
/// The folder cannot be made or written.
pub fn keep(settings: &Settings) -> io::Result<()> {
    let Some(path) = file() else { return Err(io::Error::new(io::ErrorKind::NotFound, "HOME is not set")) };
    let text = toml::to_string(settings).map_err(io::Error::other)?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    write_atomic(&path, text.as_bytes())
}

/// The desktop's portal (xdg-desktop-portal).
const PORTAL: &str = "org.freedesktop.portal.Desktop";
const PORTAL_PATH: &str = "/org/freedesktop/portal/desktop";
/// Where the portal keeps whether the person wants dark or light.
const APPEARANCE: &str = "org.freedesktop.appearance";
const COLOR_SCHEME: &str = "color-scheme";

/// Whether the desktop has a file dialog to offer. Waits for the session bus.
pub fn desktop_has_file_dialog() -> bool {
    let version = || -> zbus::Result<u32> {
        let bus = Connection::session()?;
        let proxy = Proxy::new(&bus, PORTAL, PORTAL_PATH, "org.freedesktop.portal.FileChooser")?;
        proxy.get_property("version")
    };
    version().is_ok_and(|version| version > 0)
}

/// Tells what the desktop prefers, now and whenever it changes. Comes back when there is nobody to ask.
pub fn follow_desktop(tell: impl Fn(Option<Theme>)) {
    let follow = || -> zbus::Result<()> {
        let bus = Connection::session()?;
        let proxy = Proxy::new(&bus, PORTAL, PORTAL_PATH, "org.freedesktop.portal.Settings")?;
        let changes = proxy.receive_signal("SettingChanged")?;
        let question = (APPEARANCE, COLOR_SCHEME);
        // Portals before version 2 of the interface know only `Read`.
        let answer: OwnedValue = proxy.call("ReadOne", &question).or_else(|_| proxy.call("Read", &question))?;
        tell(scheme(&answer));
        for change in changes {
            let body = change.body();
            let Ok((namespace, key, value)) = body.deserialize::<(String, String, OwnedValue)>() else { continue };
            if namespace == APPEARANCE && key == COLOR_SCHEME {
                tell(scheme(&value));
            }
        }
        Ok(())
    };
    // Without a portal the windowing system is asked instead: that needs no word.
    let _ = follow();
}

/// What a value of `color-scheme` means: 1 is dark, 2 is light, and 0 leaves it to us.
fn scheme(value: &Value<'_>) -> Option<Theme> {
    match value {
        Value::Value(inner) => scheme(inner),
        Value::U32(1) => Some(Theme::Dark),
        Value::U32(2 | 0) => Some(Theme::Light),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_desktops_preference_is_understood_also_in_the_old_interfaces_double_wrapping() {
        assert_eq!(scheme(&Value::U32(1)), Some(Theme::Dark));
        assert_eq!(scheme(&Value::Value(Box::new(Value::U32(2)))), Some(Theme::Light));
        assert_eq!(scheme(&Value::Str("dark".into())), None);
    }
}
