//! Names what is on a raw image with a packed file, in Rust: the golden image of the file where no image is given.
//!
//!     rustc classify.rs -L WHERE_BINWRN_IS_INSTALLED/lib -l static=binwrn -o classify
//!     ./classify model.packed [image.raw]

use std::ffi::{c_char, c_int, CStr, CString};
use std::{env, fs, process, ptr, slice};

/// `binwrn_options` of binwrn.h; all zero means the defaults.
#[repr(C)]
struct Options {
    threads: c_int,
    kernel: *const c_char,
    max_memory: u64,
}

/// `binwrn_description` of binwrn.h.
#[repr(C)]
struct Description {
    height: c_int,
    width: c_int,
    channels: c_int,
    classes: c_int,
    class_names: *const *const c_char,
    kernel: *const c_char,
    threads: c_int,
    multiply_adds: u64,
    weight_bytes: u64,
    arena_bytes: u64,
    scratch_bytes: u64,
    total_bytes: u64,
    golden_image: *const u8,
    golden_logits: *const f32,
    covered: c_int,
}

enum RawModel {}

extern "C" {
    fn binwrn_load_file(path: *const c_char, options: *const Options, model: *mut *mut RawModel, message: *mut c_char) -> c_int;
    fn binwrn_describe(model: *const RawModel) -> *const Description;
    fn binwrn_run(model: *mut RawModel, images: *const u8, count: usize, logits: *mut f32) -> c_int;
    fn binwrn_free(model: *mut RawModel);
    fn binwrn_error_name(error: c_int) -> *const c_char;
}

const MESSAGE: usize = 160; // BINWRN_MESSAGE

fn text(pointer: *const c_char) -> String {
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// A loaded model, which is freed when it goes out of scope.
struct Model(*mut RawModel);

impl Model {
    fn load(path: &str, threads: c_int) -> Result<Model, String> {
        let name = CString::new(path).map_err(|_| "a path with a zero byte".to_string())?;
        let options = Options { threads, kernel: ptr::null(), max_memory: 0 };
        let (mut model, mut message) = (ptr::null_mut(), [0 as c_char; MESSAGE]);
        match unsafe { binwrn_load_file(name.as_ptr(), &options, &mut model, message.as_mut_ptr()) } {
            0 => Ok(Model(model)),
            _ => Err(format!("{path}: {}", text(message.as_ptr()))),
        }
    }

    fn description(&self) -> &Description {
        unsafe { &*binwrn_describe(self.0) }
    }

    fn image_size(&self) -> usize {
        let d = self.description();
        d.height as usize * d.width as usize * d.channels as usize
    }

    fn predict(&mut self, image: &[u8]) -> Result<Vec<f32>, String> {
        if image.len() != self.image_size() {
            return Err("the image has not the size of the model's".into());
        }
        let mut logits = vec![0.0; self.description().classes as usize];
        match unsafe { binwrn_run(self.0, image.as_ptr(), 1, logits.as_mut_ptr()) } {
            0 => Ok(logits),
            error => Err(text(unsafe { binwrn_error_name(error) })),
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        unsafe { binwrn_free(self.0) }
    }
}

fn classify(arguments: &[String]) -> Result<String, String> {
    if arguments.is_empty() || arguments.len() > 2 {
        return Err("usage: classify MODEL.packed [IMAGE.raw]".into());
    }
    let mut model = Model::load(&arguments[0], 2)?;
    let image = match arguments.get(1) {
        Some(path) => fs::read(path).map_err(|problem| format!("{path}: {problem}"))?,
        None => unsafe { slice::from_raw_parts(model.description().golden_image, model.image_size()) }.to_vec(),
    };
    let logits = model.predict(&image)?;
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    let names = model.description().class_names;
    let name = if names.is_null() { "-".into() } else { text(unsafe { *names.add(best) }) };
    Ok(format!("{best} {name}"))
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match classify(&arguments) {
        Ok(line) => println!("{line}"),
        Err(problem) => {
            eprintln!("error: {problem}");
            process::exit(2);
        }
    }
}
