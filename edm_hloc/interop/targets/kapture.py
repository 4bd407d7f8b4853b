"""A folder in the kapture format 1.1, as Naver's localization tools read it."""

from __future__ import annotations

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.files import write_whole
from edm_hloc.interop.targets.undistorted import Undistorted

PHOTOS = "sensors/records_data"
_FORMAT = "# kapture format: 1.1"


def write_kapture(undistorted: Undistorted) -> None:
    """Writes sensors, trajectories (camera from world), the list of photos, and the points."""
    model = undistorted.model
    posed = posed_images(model)
    used = sorted({image.camera_id for image in posed.values()})
    sensors: list[list[object]] = []
    poses: list[list[object]] = []
    photos: list[list[object]] = []
    for camera_id in used:
        camera = model.cameras[camera_id]
        numbers = [camera.width, camera.height, *map(float, camera.params)]
        sensors.append([f"camera{camera_id}", "", "camera", camera.model_name, *numbers])
    for time, (name, image) in enumerate(posed.items()):
        pose, device = image.cam_from_world(), f"camera{image.camera_id}"
        x, y, z, w = map(float, pose.rotation.quat)
        poses.append([time, device, w, x, y, z, *map(float, pose.translation)])
        photos.append([time, device, name])
    points: list[list[object]] = [
        [*map(float, p.xyz), *map(int, p.color)] for p in model.points3D.values()
    ]
    files = {
        "sensors/sensors.txt": ("sensor_id, name, sensor_type, [sensor_params]+", sensors),
        "sensors/trajectories.txt": (
            "timestamp, device_id, qw, qx, qy, qz, tx, ty, tz",
            poses,
        ),
        "sensors/records_camera.txt": ("timestamp, device_id, image_path", photos),
        "reconstruction/points3d.txt": ("X, Y, Z, R, G, B", points),
    }
    for name, (header, rows) in files.items():
        lines = [_FORMAT, f"# {header}", *(", ".join(map(str, row)) for row in rows)]
        write_whole(undistorted.out / name, "\n".join(lines) + "\n")
