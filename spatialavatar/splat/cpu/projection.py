"""EWA projection of Gaussians to the screen and its exact gradient: the compiled twin of ``splat/projection.py``.

A record of 16 floats (one cache line) describes each visible Gaussian to the later stages:

    0 1     centre in pixels
    2 3 4   conic A B C: the inverse of the screen covariance, sigma = (A dx^2 + C dy^2) / 2 + B dx dy
    5       opacity
    6 7     half height and half width in pixels of the ellipse outside which alpha < 1/255
    8       depth in metres
    9 10 11 colour, when there are three channels
    12      the sigma on that ellipse's edge, ln(255 opacity)
    13      determinant of the conic
    14 15   not used
"""

import math

import numpy as np
from numba import prange

from spatialavatar.splat.camera import Camera
from spatialavatar.splat.cpu.runtime import kernel
from spatialavatar.splat.cpu.simd import prefetch
from spatialavatar.splat.projection import EPS2D, FAR, NEAR

RECORD = 16
TILE_WIDTH = 8


def camera_parameters(camera: Camera, index: int) -> np.ndarray:
    """What the kernels need of one camera, 22 float32: rotation 9, translation 3, fx fy cx cy, width, height, and the
    bounds of x/z and y/z inside which the Jacobian is evaluated (lowest x, highest x, lowest y, highest y)."""
    pose = camera.world_to_camera[index].detach().double().cpu().numpy()
    k = camera.intrinsics[index].detach().double().cpu().numpy()
    fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
    width, height = camera.width, camera.height
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    bounds = [-cx / fx - margin_x, (width - cx) / fx + margin_x, -cy / fy - margin_y, (height - cy) / fy + margin_y]
    return np.array([*pose[:3, :3].ravel(), *pose[:3, 3], fx, fy, cx, cy, width, height, *bounds], np.float32)


@kernel(inline=True)
def _to_camera(c, x, y, z):
    """Camera coordinates of a world point."""
    return (
        c[0] * x + c[1] * y + c[2] * z + c[9],
        c[3] * x + c[4] * y + c[5] * z + c[10],
        c[6] * x + c[7] * y + c[8] * z + c[11],
    )


@kernel(inline=True)
def _rotation(w, x, y, z):
    """Rows of the rotation matrix of a unit quaternion."""
    one, two = np.float32(1), np.float32(2)
    return (
        (one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)),
        (two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x)),
        (two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)),
    )


@kernel(inline=True)
def _screen_axes(c, slope_x, slope_y, inverse_depth):
    """Rows a, b of J W: how the screen position moves with the world position.

    J = [[fx/z, 0, -fx slope_x/z], [0, fy/z, -fy slope_y/z]], W the camera's rotation.
    """
    fx, fy = c[12] * inverse_depth, c[13] * inverse_depth
    gx, gy = -fx * slope_x, -fy * slope_y
    return (
        (fx * c[0] + gx * c[6], fx * c[1] + gx * c[7], fx * c[2] + gx * c[8]),
        (fy * c[3] + gy * c[6], fy * c[4] + gy * c[7], fy * c[5] + gy * c[8]),
    )


@kernel(inline=True)
def _times_rotation(a, r):
    """Row vector times matrix."""
    return (
        a[0] * r[0][0] + a[1] * r[1][0] + a[2] * r[2][0],
        a[0] * r[0][1] + a[1] * r[1][1] + a[2] * r[2][1],
        a[0] * r[0][2] + a[1] * r[1][2] + a[2] * r[2][2],
    )


@kernel(inline=True)
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@kernel(inline=True)
def _clamp(value, low, high):
    return min(max(value, low), high)


@kernel(parallel=True, fastmath={"contract"})
def project(means, quats, scales, colors, opacities, camera, records, columns):
    """Fill the records, and per Gaussian the first and the end tile column (both 0: culled or not finite).

    Screen covariance P P^T + eps2d I with P = J W R S; its determinant by Cauchy-Binet, without cancellation.
    """
    channels = colors.shape[1]
    width, height = camera[16], camera[17]
    tiles_wide = np.float32((int(width) + TILE_WIDTH - 1) // TILE_WIDTH)
    half, eps = np.float32(0.5), np.float32(EPS2D)
    for n in prange(means.shape[0]):
        columns[n, 0] = 0
        columns[n, 1] = 0
        x, y, z = _to_camera(camera, means[n, 0], means[n, 1], means[n, 2])
        opacity = opacities[n]
        # a comparison with NaN is false
        if not (z > np.float32(NEAR) and z < np.float32(FAR) and opacity >= np.float32(1 / 255)):
            continue
        qw, qx, qy, qz = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
        squared = qw * qw + qx * qx + qy * qy + qz * qz
        if not (squared > np.float32(1e-30) and squared < np.float32(1e30)):
            continue
        unit = np.float32(1) / math.sqrt(squared)
        r = _rotation(qw * unit, qx * unit, qy * unit, qz * unit)
        inverse_depth = np.float32(1) / z
        xz, yz = x * inverse_depth, y * inverse_depth
        a, b = _screen_axes(
            camera, _clamp(xz, camera[18], camera[19]), _clamp(yz, camera[20], camera[21]), inverse_depth
        )
        s = (scales[n, 0], scales[n, 1], scales[n, 2])
        a, b = _times_rotation(a, r), _times_rotation(b, r)
        p = (a[0] * s[0], a[1] * s[1], a[2] * s[2])
        q = (b[0] * s[0], b[1] * s[1], b[2] * s[2])
        xx, xy, yy = _dot(p, p), _dot(p, q), _dot(q, q)
        minors = (p[0] * q[1] - p[1] * q[0], p[0] * q[2] - p[2] * q[0], p[1] * q[2] - p[2] * q[1])
        determinant = _dot(minors, minors) + eps * (xx + yy) + eps * eps
        xx += eps
        yy += eps
        u, v = camera[12] * xz + camera[14], camera[13] * yz + camera[15]
        edge = math.log(opacity * np.float32(255))
        extent = min(np.float32(3.33), math.sqrt(np.float32(2) * edge))
        half_width, half_height = extent * math.sqrt(xx), extent * math.sqrt(yy)
        rx, ry = math.ceil(half_width), math.ceil(half_height)
        inside = u + rx > 0 and u - rx < width and v + ry > 0 and v - ry < height
        finite = determinant < np.float32(1e30) and abs(u) < np.float32(1e9) and abs(v) < np.float32(1e9)
        for k in range(channels):
            finite = finite and abs(colors[n, k]) < np.float32(1e30)
        if not (inside and finite and opacity < np.float32(1e30)):
            continue
        # a little slack: whatever it lets in has alpha < 1/255
        half_width = half_width * np.float32(1.0001) + np.float32(0.01)
        half_height = half_height * np.float32(1.0001) + np.float32(0.01)
        records[n, 0] = u
        records[n, 1] = v
        records[n, 2] = yy / determinant
        records[n, 3] = -xy / determinant
        records[n, 4] = xx / determinant
        records[n, 5] = opacity
        records[n, 6] = half_height
        records[n, 7] = half_width
        records[n, 8] = z
        if channels == 3:
            records[n, 9] = colors[n, 0]
            records[n, 10] = colors[n, 1]
            records[n, 11] = colors[n, 2]
        records[n, 12] = edge
        records[n, 13] = np.float32(1) / determinant
        left, right = (u - half_width - half) / TILE_WIDTH, (u + half_width - half) / TILE_WIDTH
        columns[n, 0] = int(_clamp(left, np.float32(0), tiles_wide))
        columns[n, 1] = int(_clamp(right + np.float32(1), np.float32(0), tiles_wide))


@kernel(parallel=True, fastmath={"contract"})
def project_backward(
    means, quats, scales, camera, records, first_row, row_order, rows, g_means, g_quats, g_scales, g_colors, g_opacities
):
    """Add every Gaussian's gradient to the ``g_`` arrays.

    Its intersections' rows ``rows[row_order[first_row[n] : first_row[n + 1]]]`` are summed in a fixed order; each holds
    the gradient w.r.t. screen centre (2), conic (3), opacity (1) and colour (C).
    """
    channels = g_colors.shape[1]
    row_width = rows.shape[1]
    one, two, half = np.float32(1), np.float32(2), np.float32(0.5)
    last = first_row[means.shape[0]]
    for n in prange(means.shape[0]):
        begin, end = first_row[n], first_row[n + 1]
        if begin == end:
            continue
        vu = vv = v_conic_a = v_conic_b = v_conic_c = v_opacity = np.float32(0)
        red = green = blue = np.float32(0)
        for i in range(begin, end):
            row = row_order[i]
            if i + 24 < last:
                prefetch(rows, np.int64(row_order[i + 24]) * row_width)
            vu += rows[row, 0]
            vv += rows[row, 1]
            v_conic_a += rows[row, 2]
            v_conic_b += rows[row, 3]
            v_conic_c += rows[row, 4]
            v_opacity += rows[row, 5]
            if channels == 3:
                red += rows[row, 6]
                green += rows[row, 7]
                blue += rows[row, 8]
            else:
                for k in range(channels):
                    g_colors[n, k] += rows[row, 6 + k]
        if channels == 3:
            g_colors[n, 0] += red
            g_colors[n, 1] += green
            g_colors[n, 2] += blue
        g_opacities[n] += v_opacity

        # covariance: G = -conic V conic, V the symmetric matrix of the conic's gradients
        ca, cb, cc = records[n, 2], records[n, 3], records[n, 4]
        vb = half * v_conic_b
        e00, e01 = v_conic_a * ca + vb * cb, v_conic_a * cb + vb * cc
        e10, e11 = vb * ca + v_conic_c * cb, vb * cb + v_conic_c * cc
        gxx, gxy, gyy = -(ca * e00 + cb * e10), -(ca * e01 + cb * e11), -(cb * e01 + cc * e11)

        # replay the projection
        x, y, z = _to_camera(camera, means[n, 0], means[n, 1], means[n, 2])
        qw, qx, qy, qz = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
        unit = one / math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
        qw, qx, qy, qz = qw * unit, qx * unit, qy * unit, qz * unit
        r = _rotation(qw, qx, qy, qz)
        inverse_depth = one / z
        xz, yz = x * inverse_depth, y * inverse_depth
        tx, ty = _clamp(xz, camera[18], camera[19]), _clamp(yz, camera[20], camera[21])
        a, b = _screen_axes(camera, tx, ty, inverse_depth)
        p, q = _times_rotation(a, r), _times_rotation(b, r)
        s = (scales[n, 0], scales[n, 1], scales[n, 2])

        # gradient of P = [p s; q s] is 2 G P, split into scale and the rows v_p, v_q of J W R
        wp = (
            two * (gxx * p[0] + gxy * q[0]) * s[0],
            two * (gxx * p[1] + gxy * q[1]) * s[1],
            two * (gxx * p[2] + gxy * q[2]) * s[2],
        )
        wq = (
            two * (gxy * p[0] + gyy * q[0]) * s[0],
            two * (gxy * p[1] + gyy * q[1]) * s[1],
            two * (gxy * p[2] + gyy * q[2]) * s[2],
        )
        g_scales[n, 0] += wp[0] * p[0] + wq[0] * q[0]
        g_scales[n, 1] += wp[1] * p[1] + wq[1] * q[1]
        g_scales[n, 2] += wp[2] * p[2] + wq[2] * q[2]
        vp = (wp[0] * s[0], wp[1] * s[1], wp[2] * s[2])
        vq = (wq[0] * s[0], wq[1] * s[1], wq[2] * s[2])

        # rotation: V = a^T v_p + b^T v_q, then the quaternion, then its normalisation
        v00, v01, v02 = a[0] * vp[0] + b[0] * vq[0], a[0] * vp[1] + b[0] * vq[1], a[0] * vp[2] + b[0] * vq[2]
        v10, v11, v12 = a[1] * vp[0] + b[1] * vq[0], a[1] * vp[1] + b[1] * vq[1], a[1] * vp[2] + b[1] * vq[2]
        v20, v21, v22 = a[2] * vp[0] + b[2] * vq[0], a[2] * vp[1] + b[2] * vq[1], a[2] * vp[2] + b[2] * vq[2]
        gw = two * (qx * (v21 - v12) + qy * (v02 - v20) + qz * (v10 - v01))
        gx = two * (-two * qx * (v11 + v22) + qy * (v01 + v10) + qz * (v02 + v20) + qw * (v21 - v12))
        gy = two * (qx * (v01 + v10) - two * qy * (v00 + v22) + qz * (v12 + v21) + qw * (v02 - v20))
        gz = two * (qx * (v02 + v20) + qy * (v12 + v21) - two * qz * (v00 + v11) + qw * (v10 - v01))
        along = gw * qw + gx * qx + gy * qy + gz * qz
        g_quats[n, 0] += (gw - along * qw) * unit
        g_quats[n, 1] += (gx - along * qx) * unit
        g_quats[n, 2] += (gy - along * qy) * unit
        g_quats[n, 3] += (gz - along * qz) * unit

        # Jacobian: v_J = (v_P R^T) W^T, only its four non-zero entries
        va = (_dot(r[0], vp), _dot(r[1], vp), _dot(r[2], vp))
        vb_ = (_dot(r[0], vq), _dot(r[1], vq), _dot(r[2], vq))
        row0, row1, row2 = (
            (camera[0], camera[1], camera[2]),
            (camera[3], camera[4], camera[5]),
            (camera[6], camera[7], camera[8]),
        )
        fx, fy = camera[12] * inverse_depth, camera[13] * inverse_depth
        vj00, vj02 = fx * _dot(row0, va), fx * _dot(row2, va)
        vj11, vj12 = fy * _dot(row1, vb_), fy * _dot(row2, vb_)
        # camera point; slopes outside the bounds are constants
        vx, vy = fx * vu, fy * vv
        vz = -fx * xz * vu - fy * yz * vv + inverse_depth * (tx * vj02 + ty * vj12 - vj00 - vj11)
        if xz == tx:
            vx -= inverse_depth * vj02
            vz += inverse_depth * tx * vj02
        if yz == ty:
            vy -= inverse_depth * vj12
            vz += inverse_depth * ty * vj12
        g_means[n, 0] += camera[0] * vx + camera[3] * vy + camera[6] * vz
        g_means[n, 1] += camera[1] * vx + camera[4] * vy + camera[7] * vz
        g_means[n, 2] += camera[2] * vx + camera[5] * vy + camera[8] * vz
