"""Train, evaluate and look, from Python; run it in this folder after the first two lines of README.md.

python by_api.py [iterations]
"""

import sys

import drivestack

iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 300
shrink = {"train_cfg.max_iters": iterations, "validation.interval": iterations}
drivestack.train("my_config.py", "runs/by_api", overrides=shrink, fine_tune="bevformerv2_tiny_synthetic")

model = drivestack.load("runs/by_api")
frames = drivestack.read("data/own_rig", reader="my_reader.py", split="val")
scores = drivestack.evaluate(model, frames)
print(f"mAP {scores['boxes']['map']:.3f}", {name: round(ap, 3) for name, ap in scores["boxes"]["ap"].items()})

frame = frames[0]
rig = drivestack.Rig({v.name: (v.camera, v.ego_from_camera) for v in frame.cameras})
answer = model({view.name: view.image_path for view in frame.cameras}, rig, frame.global_from_ego)
answer.picture().save("own_rig.jpg")
print(f"{len(answer.boxes.above(0.3))} boxes in own_rig.jpg")
