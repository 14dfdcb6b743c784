//! The guest's screen as a PNG file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use vmm_core::backend::display::Mode;

/// How many files of the same second are tried before it is given up.
const MAX_TRIES: u32 = 100;

/// Writes XRGB8888 rows as a PNG.
///
/// # Errors
/// The picture is empty or `out` fails.
pub fn write_png(out: impl io::Write, mode: Mode, pixels: &[u8]) -> io::Result<()> {
    let rgb: Vec<u8> = pixels.chunks_exact(4).flat_map(|p| [p[2], p[1], p[0]]).collect();
    let mut encoder = png::Encoder::new(out, mode.width, mode.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&rgb)?;
    writer.finish()?;
    Ok(())
}

/// Saves a screenshot of the machine `name` in `folder` (made if need be) and returns its file.
///
/// # Errors
/// A sentence with the file and the reason.
pub fn save(folder: &Path, name: &str, time: &str, mode: Mode, pixels: &[u8]) -> Result<PathBuf, String> {
    let failed = |path: &Path, e: io::Error| format!("could not save the screenshot to {}: {e}", path.display());
    fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
    let (file, path) = create(folder, &format!("{} {time}", plain(name))).map_err(|e| failed(folder, e))?;
    write_png(BufWriter::new(file), mode, pixels).map_err(|e| {
        // Half a picture is no picture; if even this fails there is nothing more to do about it.
        let _ = fs::remove_file(&path);
        failed(&path, e)
    })?;
    Ok(path)
}

/// Makes a file that was not there before.
fn create(folder: &Path, stem: &str) -> io::Result<(File, PathBuf)> {
    let mut tries = 1;
    loop {
        let number = if tries == 1 { String::new() } else { format!(" ({tries})") };
        let path = folder.join(format!("{stem}{number}.png"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && tries < MAX_TRIES => tries += 1,
            Err(e) => return Err(e),
        }
    }
}

/// A name without what a file's name must not or should not have.
fn plain(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c == '/' || c == '\\' || c.is_control() { '-' } else { c }).take(80).collect();
    let plain = plain.trim_start_matches('.').trim().to_string();
    if plain.is_empty() { "screenshot".into() } else { plain }
}

/// The person's folder for pictures: XDG's, `~/Pictures` without one.
pub fn pictures() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let config = std::env::var_os("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
    let set = fs::read_to_string(config.join("user-dirs.dirs")).ok().and_then(|text| pictures_in(&text, &home));
    set.unwrap_or_else(|| home.join("Pictures"))
}

/// XDG_PICTURES_DIR of a user-dirs.dirs file (xdg-user-dirs: `NAME="$HOME/…"` or an absolute path).
fn pictures_in(text: &str, home: &Path) -> Option<PathBuf> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix("XDG_PICTURES_DIR="))?;
    let value = value.trim().trim_matches('"');
    if let Some(below) = value.strip_prefix("$HOME/") {
        return Some(home.join(below));
    }
    value.starts_with('/').then(|| PathBuf::from(value))
}

/// The local time, as it is put in a file's name.
pub fn local_time() -> String {
    // SAFETY: both calls only read and write the values they are given; `tm` is plain data for which zero is valid.
    let tm = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut tm: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const now, &raw mut tm);
        tm
    };
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    format!("{year}-{month:02}-{:02} {:02}-{:02}-{:02}", tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODE: Mode = Mode { width: 2, height: 1 };
    const PIXELS: [u8; 8] = [1, 2, 3, 0, 40, 50, 60, 255];

    #[test]
    fn a_screenshot_reads_back_as_the_screen_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = save(&folder.path().join("new"), "web/1", "now", MODE, &PIXELS).unwrap();
        assert_eq!(path.file_name().unwrap(), "web-1 now.png");
        let decoder = png::Decoder::new(io::BufReader::new(File::open(path).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut bytes = [0; 6];
        reader.next_frame(&mut bytes).unwrap();
        assert_eq!(bytes, [3, 2, 1, 60, 50, 40]);
    }

    #[test]
    fn two_screenshots_of_a_second_are_two_files() {
        let folder = tempfile::tempdir().unwrap();
        let first = save(folder.path(), "vm", "now", MODE, &PIXELS).unwrap();
        let second = save(folder.path(), "vm", "now", MODE, &PIXELS).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn a_folder_that_is_a_file_gives_a_sentence() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = save(file.path(), "vm", "now", MODE, &PIXELS).unwrap_err();
        assert!(error.contains("could not save the screenshot to"), "{error}");
    }

    #[test]
    fn the_pictures_folder_follows_the_users_file() {
        let home = Path::new("/home/a");
        let read = |text| pictures_in(text, home);
        assert_eq!(read("# x\nXDG_PICTURES_DIR=\"$HOME/Bilder\"\n"), Some("/home/a/Bilder".into()));
        assert_eq!(read("XDG_PICTURES_DIR=\"/data/pics\""), Some("/data/pics".into()));
        assert_eq!(read("XDG_PICTURES_DIR=\"$HOME\""), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn names_lose_what_a_path_would_take_for_its_own() {
        assert_eq!(plain("../etc"), "-etc");
        assert_eq!(plain("\n"), "-");
        assert_eq!(plain("..."), "screenshot");
    }
}
