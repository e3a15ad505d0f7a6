"""A teacher to try examples/flexkd.yaml with: the student's weights beside dimensions of noise, as a folder.

    python examples/wider_teacher.py runs/wider [--student smollm2-135m]

Every hidden state of the new model is that of the student, followed by as many dimensions again that its layers and its
head ignore. It answers exactly as the student does, and Flex-KD must find the student's own dimensions.
"""
